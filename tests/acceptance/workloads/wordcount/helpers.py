"""A sibling module, imported plainly."""


def words_of(text: str) -> list[str]:
    return text.lower().split()
