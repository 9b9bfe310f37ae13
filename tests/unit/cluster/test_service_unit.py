"""The systemd unit: what systemd reads is what was meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dgpunet_dask.cluster.service_unit import quoted, unit_text

TEXT = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1, max_size=20)
NEEDS_ANALYZE = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def read_back(word):
    """Return a word as systemd reads it: quotes, C escapes, specifiers (systemd.syntax(7), systemd.unit(5))."""
    inner = word[1:-1] if word.startswith('"') else word
    plain = re.sub(r"\\x([0-9a-f]{2})|\\(.)", lambda m: chr(int(m[1], 16)) if m[1] else m[2], inner)
    return plain.replace("%%", "%")


@given(TEXT)
@example("a b")
@example('say "hi" \\ 100% $HOME\n\r\tend')
def test_a_word_is_one_word_on_one_line_and_means_itself(word):
    found = quoted(word)
    assert not re.search(r"[\x00-\x1f\x7f]", found)
    assert re.fullmatch(r'"(\\.|[^"\\])*"|[A-Za-z0-9_@%+=:,./-]+', found)
    assert read_back(found) == word


def fields(text):
    return [tuple(line.split("=", 1)) for line in text.splitlines() if "=" in line and not line.startswith("#")]


def test_whatever_ends_is_started_again_and_supervisors_end_in_order():
    found = dict(fields(unit_text("head", ["/usr/bin/python", "head"], {}, system=True)))
    assert {name: found[name] for name in ("Restart", "KillMode", "KillSignal", "StartLimitIntervalSec", "UMask", "WantedBy")} == {
        "Restart": "always", "KillMode": "mixed", "KillSignal": "SIGTERM", "StartLimitIntervalSec": "0", "UMask": "0077", "WantedBy": "multi-user.target",
    }  # fmt: skip
    assert ("WantedBy", "default.target") in fields(unit_text("agent", ["/p"], {}, system=False))


def test_dollar_signs_are_doubled_in_arguments_alone():
    text = unit_text("head", ["/p/a$b/python", "$HOME"], {"DGPUNET_HOME": "/h/x$y 100%"}, system=False)
    assert 'ExecStart="/p/a$b/python" "$$HOME"\n' in text
    assert 'Environment="DGPUNET_HOME=/h/x$y 100%%"\n' in text


@NEEDS_ANALYZE
@pytest.mark.parametrize("folder", ["plain", "with space", "dollar$x", "per%cent"])  # systemd itself refuses quotes and backslashes there
def test_systemd_finds_the_program_wherever_it_lies(tmp_path, folder):
    program = tmp_path / folder / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    unit = tmp_path / "dgpunet-dask.service"
    unit.write_text(unit_text("head", [str(program), "-P", "a b"], {"DGPUNET_HOME": str(program.parent)}, system=True))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=30)
    ours = [line for line in done.stderr.splitlines() if "dgpunet" in line or str(tmp_path) in line]
    assert (ours, done.returncode) == ([], 0)
