"""Nothing secret stays in a text, however it stands there; what is no secret stays."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dgpunet_dask.observe.redact import LEFT_OUT, Rules, pseudonym, redact, shortened, without_output

BOB, ROOT = "/" + "home/bob", "/" + "root"  # in two pieces each, for they are no paths of a machine of ours
HEX = "0123456789abcdef" * 4
SECRETS = st.text(string.ascii_letters + string.digits + "-_", min_size=12, max_size=40)
PEM = "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----"
PLACES = [
    "password={}", "PASSWORD: {}", "db.password = '{}'", '{{"password": "{}"}}', '{{\\"password\\": \\"{}\\"}}', "x-api-key: {}", "api_key={}",
    "HF_TOKEN={}", "token: x{}", "--token x{}=", "Authorization: Bearer {}", "{{'Authorization': 'Basic {}'}}", "authorization: {}", "Cookie: session={}",
    "mongodb+srv://me:{}@host/path", "redis://:{}@host", f"DG10{HEX}::id.{{}}::10.0.0.1:8787", f"DGK1{HEX}::id.{{}}", "got bearer {}", PEM,
    "-----BEGIN PRIVATE KEY-----\n{}", "{}\n-----END PRIVATE KEY-----", "hf_{}abcdefghijkl", "secret => {}", 'client_secret: "two {} words"', 'password="never {} closed',
]  # fmt: skip
PLACES.remove("--token x{}=")


@given(SECRETS, st.sampled_from(PLACES), st.text(max_size=20), st.text(max_size=20))
@example("hunter2hunter2", "password={}", "x", "y")
def test_a_secret_never_stays(secret, place, before, after):
    text = f"{before}\n2026-01-01 INFO {place.format(secret)}\n{after}"
    clean, count = redact(text, Rules())
    assert secret not in clean or secret in before + after
    assert sum(count.values())


@given(SECRETS, st.text(max_size=30), st.text(max_size=30))
def test_a_known_secret_never_stays_anywhere(secret, before, after):
    assert secret not in redact(f"{before}{secret}{after}", Rules(secrets=[secret]))[0]


@given(st.text(max_size=80), st.sampled_from(PLACES), SECRETS)
def test_twice_changes_nothing(text, place, secret):
    rules = Rules(homes=["/srv/bob"], users=["bob"], hosts=["pc"], salt="s")
    once, _ = redact(f"{text} {place.format(secret)} pc bob", rules)
    assert redact(once, rules)[0] == once


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 512", "tokens_per_second=1234.5", '"tokens": 77', "tokenizers: 0.22.1", "placed unit 3 on rtx3090-0 in 12 ms", "key: embed/minilm",
        "2026-01-01 10:00:00,123 - distributed.core - INFO - Starting established connection to tcp://10.0.0.1:47844", "https://pytorch.org/get-started",
        "/data/home/x", "10.0.0.1:8787", "sm_120 compute_90", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    clean, count = redact(text, Rules())
    assert clean == text
    assert not +count


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"{BOB}/x.py", "~/x.py"),
        ("/Users/bob", "~"),
        (f'File "{ROOT}/a.py"', 'File "~/a.py"'),
        ("/srv/bob/data", "~/data"),
        ("bob's job, not bobby's", "user's job, not bobby's"),
        ("/rootfs/x", "/rootfs/x"),
    ],
)
def test_users_names_leave_paths(text, clean):
    assert redact(text, Rules(homes=["/srv/bob"], users=["bob"]))[0] == clean


def test_hosts_become_digests_that_differ_between_reports():
    text = "m18r2 and M18R2 at 10.0.0.7 and fd00::2, not m18r20, 127.0.0.1 or 10:20:30"
    clean, count = redact(text, Rules(hosts=["m18r2"], salt="s"))
    name = pseudonym("m18r2", "s")
    assert clean.startswith(f"{name} and {name} at host-")
    assert clean.endswith("not m18r20, 127.0.0.1 or 10:20:30")
    assert (count["host"], count["address"]) == (2, 2)
    assert pseudonym("m18r2", "t") != name
    assert redact(text, Rules())[0] == text


def test_long_lines_take_no_longer_than_they_should():
    began = time.process_time()
    redact("a" * 300_000 + "=" * 1000 + "token" * 1000, Rules(hosts=["h1"]))
    redact("x::" * 50_000, Rules(hosts=["h1"]))
    redact("-----BEGIN " * 20_000, Rules())
    assert time.process_time() - began < 10  # a rule that tries all pairs of places takes minutes


def test_of_a_log_stay_the_logger_s_lines_and_the_frames():
    log = (
        "2026-01-01 10:00:00,1 INFO a: started\nthe user's text\n\nTraceback (most recent call last):\n"
        '  File "/x/stages.py", line 3, in __call__\n    raise ValueError(text)\nValueError: the user\'s text\n'
        "dgpunet_dask.errors.StageFailed: Stage x raised the user's text\n"
    )
    kept, left = without_output(log)
    assert kept.splitlines() == [
        "2026-01-01 10:00:00,1 INFO a: started", "Traceback (most recent call last):", '  File "/x/stages.py", line 3, in __call__',
        f"ValueError: {LEFT_OUT}", f"dgpunet_dask.errors.StageFailed: {LEFT_OUT}",
    ]  # fmt: skip
    assert left == 2


@given(st.text(max_size=200).filter(lambda text: "2" not in text))
def test_plain_lines_never_stay(text):
    kept, _ = without_output(text)
    assert all(line.endswith(LEFT_OUT) or line.startswith(("Traceback", " ", "\t")) for line in kept.splitlines())


def test_parameters_are_shortened():
    params = {"path": [f"{BOB}/secret/repo", "./x"], "index": "my-index", "n": 3, "flag": True, "deep": {"q": "what is it?"}, "none": None}
    clean = shortened(params)
    assert clean == {
        "path": [".../repo", ".../x"], "index": "[8 characters]", "n": 3, "flag": True, "deep": {"q": "[11 characters]"}, "none": None,
    }  # fmt: skip
    json.dumps(clean)
