"""`dgpunet-dask ask`: the best hits of an index packed for a language model, printed or sent to one, whose answer is printed as it comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.cli.context import CliContext, Seconds, emit_json, pass_context, printable
from dgpunet_dask.cli.hits import Wanted, answers, hit_options, wanted_hits
from dgpunet_dask.errors import BadValue, NoEndpoint

if TYPE_CHECKING:
    from dgpunet_dask.config.settings import Ask
    from dgpunet_dask.retrieval.ask import Context
    from dgpunet_dask.retrieval.endpoint import Endpoint

#: What is read from the environment. The key has no other way in: what stands on a command line, or in a file, is read by others.
ENDPOINT: Final = "DGPUNET_ASK_ENDPOINT"
MODEL: Final = "DGPUNET_ASK_MODEL"
KEY: Final = "DGPUNET_ASK_KEY"
#: A context that every model of today takes, with room for the answer.
BUDGET: Final = 6000
#: Each hit is weighed against all that is packed so far.
_HITS_MOST: Final = 200


@click.command()
@click.argument("index")
@click.argument("question")
@click.option("-k", "k", type=click.IntRange(1, _HITS_MOST), default=30, show_default=True, metavar="N", help="Hits to choose from.")
@click.option(
    "--budget", type=click.IntRange(min=1), default=BUDGET, show_default=True, metavar="TOKENS", help="Most tokens of the context, as estimated."
)
@hit_options
@click.option("--context-only", is_flag=True, help="Print the context; ask nobody.")
@click.option("--endpoint", metavar="URL", help=f"OpenAI-compatible server. Default: ${ENDPOINT}, else config.yaml. Its key: ${KEY}.")
@click.option("--model", metavar="NAME", help=f"Model of that server. Default: ${MODEL}, else config.yaml, else its only one.")
@click.option(
    "--timeout", type=Seconds(min=0, min_open=True), default=120.0, show_default=True, metavar="S",
    help="Seconds to wait for the next part of the answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON once the answer is whole.")
@pass_context
def ask(
    context: CliContext, index: str, question: str, k: int, budget: int, path_glob: str | None, lang: str | None, kinds: tuple[str, ...],
    rerank: str | None, context_only: bool, endpoint: str | None, model: str | None, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Answer QUESTION from the best hits of INDEX, with the places that the answer rests on.

    The hits are packed into one context, each under its citation, and sent to a language model that you run or trust; --context-only
    prints it, to paste or to pipe elsewhere.
    """
    from dgpunet_dask.retrieval.ask import messages, pack

    _check(question)
    wanted = wanted_hits(k, path_glob, lang, kinds, rerank)
    asked = None if context_only else _endpoint(context, endpoint, model, timeout)  # before the search: it may fail at once
    hits = _hits(context, index, question, wanted)
    packed = pack(hits, budget)
    if hits and not packed.excerpts:
        raise BadValue(what="--budget", value=budget, why="not one line of the best hit fits; give it more tokens")
    told = {"index": index, "question": question, **packed.to_json(), "budget": budget, "counted_by": "estimate"}
    if asked is None or not hits:
        _show_context(told, as_json)
        return
    model_name = asked[1] or asked[0].only_model()
    answer, finish = _answer(asked[0], model_name, messages(packed, question), shown=not as_json)
    if as_json:
        emit_json({**told, "model": model_name, "answer": answer, "finish": finish, "error": None})
    else:
        _show_citations(packed, finish)


def _check(question: str) -> None:
    """Look whether a question can be asked: the shell hands on what is no UTF-8 as well."""
    try:
        usable = bool(question.strip()) and bool(question.encode())
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise BadValue(what="the question", value=question, why="write what you want to know, in UTF-8")


def _hits(context: CliContext, index: str, question: str, wanted: Wanted) -> list[dict[str, Any]]:
    """Return the hits, from wherever `search` has them."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `search` has it
    from dgpunet_dask.retrieval.search import Query

    [answer] = answers(context, index, [Query(question)], wanted)
    return list(answer["hits"])


def _endpoint(context: CliContext, endpoint: str | None, model: str | None, timeout_s: float) -> tuple[Endpoint, str | None]:
    """Return where to ask, and the model where one was named."""
    from dgpunet_dask.retrieval.endpoint import endpoint_at

    set_by_owner = _settings(context)
    url = endpoint or os.environ.get(ENDPOINT) or set_by_owner.endpoint
    if not url:
        raise NoEndpoint
    return endpoint_at(url, os.environ.get(KEY), timeout_s), model or os.environ.get(MODEL) or set_by_owner.model


def _settings(context: CliContext) -> Ask:
    from dgpunet_dask.config.settings_file import read_settings

    return read_settings(context.home.config).ask


def _answer(endpoint: Endpoint, model: str, asked: Sequence[Mapping[str, str]], *, shown: bool) -> tuple[str, str | None]:
    """Return the answer and why it ends; print it as it comes where it is to be shown."""
    answer, finish = "", None
    try:
        for chunk in endpoint.answer(model, asked):
            answer += chunk.text
            finish = chunk.finish or finish
            if shown:
                click.echo(printable(chunk.text, "\n\t"), nl=False)
                sys.stdout.flush()
    finally:
        if shown and answer and not answer.endswith("\n"):
            click.echo()  # also before the line that tells of an error
    return answer, finish


def _show_citations(packed: Context, finish: str | None) -> None:
    from dgpunet_dask.retrieval.ask import heading

    click.echo("\nFrom:")
    for number, excerpt in enumerate(packed.excerpts, 1):
        click.echo(f"  {heading(number, excerpt)}")
    if finish == "length":
        click.echo("The answer was cut: the model had no room for more.", err=True)
    _tell_left_out(packed.left_out)


def _show_context(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json({**told, "model": None, "answer": None, "finish": None, "error": None})
        return
    if told["context"]:
        click.echo(printable(told["context"], "\n\t"))
        click.echo(f"About {told['tokens']} of {told['budget']} tokens, by an estimate that rather counts too many.", err=True)
    else:
        click.echo("No hits.", err=True)
    _tell_left_out(told["left_out"])


def _tell_left_out(hits: int) -> None:
    if hits:
        click.echo(f"Left out for want of room: {hits} of the hits. A larger --budget takes more.", err=True)
