"""Whose the models are that jobs name, as tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dgpunet_dask.errors import NewerFormat, NotAllowed, NotFound, UnreadablePath
from dgpunet_dask.jobs.model_owners import Brought, ModelOwners
from dgpunet_dask.model.owner import User

ANN, BOB, ROOT = User("ann"), User("bob"), User("root", operates=True)
FOLDER = Brought(name="/m/fine-tuned", digest="d1", public=False)
COPY = Brought(name="/bob/copy", digest="d1", public=False)
HUB = Brought(name="some/model", digest="d2", public=True)


@pytest.fixture
def owners(tmp_path):
    return ModelOwners(tmp_path / "models.json")


def rows(owners, by=ROOT):
    return [(info.name, info.digest, info.owner, info.shared) for info in owners.list(by)]


ANNS = ("/m/fine-tuned", "d1", "ann", False)


@pytest.mark.parametrize(("by", "model", "shared", "left"), [
    (ANN, FOLDER, False, [ANNS]), (ANN, replace(FOLDER, digest="d9"), False, [("/m/fine-tuned", "d9", "ann", False)]),
    (ANN, replace(FOLDER, digest=None), False, [ANNS]), (ROOT, FOLDER, False, [ANNS]),
    (BOB, FOLDER, False, None), (BOB, replace(FOLDER, digest="d9"), False, None), (BOB, replace(FOLDER, digest=None), False, None),
    (User(), FOLDER, False, None), (BOB, FOLDER, True, [(*ANNS[:3], True)]),
    (BOB, COPY, False, [("/bob/copy", "d1", "bob", False), ANNS]), (BOB, HUB, False, [ANNS, ("some/model", "d2", None, True)]),
])  # fmt: skip
def test_after_ann_has_brought_a_model(owners, by, model, shared, left):
    owners.use([FOLDER], ANN, 5.0)
    if shared:
        owners.share(FOLDER.id, ANN, shared=True)
    if left is None:
        with pytest.raises(NotAllowed):
            owners.use([HUB, model], by, 6.0)
        assert rows(owners) == [ANNS]  # of the other nothing was noted either
    else:
        owners.use([model], by, 6.0)
        assert rows(owners) == left


def test_the_refusal_names_the_cure(owners):
    owners.use([FOLDER], ANN, 5.0)
    with pytest.raises(NotAllowed, match=f"dgpunet-dask model share {FOLDER.id}") as told:
        owners.use([FOLDER], BOB, 6.0)
    assert told.value.exit_code == 2


def test_a_hub_s_model_is_nobody_s_and_only_operators_take_it_back(owners):
    owners.use([HUB], ANN, 5.0)
    with pytest.raises(NotAllowed):
        owners.share(HUB.id, ANN, shared=False)
    owners.use([HUB], BOB, 6.0)
    owners.share(HUB.id, ROOT, shared=False)
    with pytest.raises(NotAllowed):
        owners.use([HUB], BOB, 7.0)


def test_a_list_holds_what_may_be_used(owners):
    owners.use([FOLDER, HUB], ANN, 5.0)
    assert rows(owners, BOB) == [("some/model", "d2", None, True)]
    assert rows(owners, ANN) == rows(owners, ROOT) == [ANNS, ("some/model", "d2", None, True)]
    assert [info.since_s for info in owners.list(ANN)] == [5.0, 5.0]


@pytest.mark.parametrize(("by", "model", "error"), [
    (ANN, FOLDER, None), (ROOT, FOLDER, None), (BOB, FOLDER, NotFound), (BOB, HUB, NotAllowed), (BOB, COPY, NotFound),
])  # fmt: skip
def test_who_may_share(owners, by, model, error):
    owners.use([FOLDER, HUB], ANN, 5.0)
    before = rows(owners)
    if error is None:
        assert owners.share(model.id, by, shared=True).shared
        assert rows(owners, BOB)[0] == (*ANNS[:3], True)
        assert not owners.share(model.id, by, shared=False).shared
    else:
        with pytest.raises(error):
            owners.share(model.id, by, shared=True)
    assert rows(owners) == before


def test_a_job_without_models_of_users_leaves_no_file(owners, tmp_path):
    owners.use([], ANN, 5.0)
    assert owners.list(ROOT) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "error"), [("{", UnreadablePath), ("[]", UnreadablePath), (json.dumps({"version": 99}), NewerFormat)])
def test_nobody_is_let_in_on_a_guess(owners, tmp_path, text, error):
    (tmp_path / "models.json").write_text(text)
    with pytest.raises(error):
        owners.use([FOLDER], ANN, 5.0)
