"""Policy files: what they may say, how several become one, and that whatever a file holds gives a policy or its mistakes."""

from __future__ import annotations

import dataclasses
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import MalformedFile, NewerFormat, Problem
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import HostRule, Layer, Match, OnOom, Policy, Preference, Require, Reserve, Rule, Selector, SourceRef
from dgpunet_dask.placement.lint import lint
from dgpunet_dask.placement.policy_file import merge, parse_policies, parse_policy
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.units import VersionSpec
from tests.helpers import ROOT

HOME5 = (ROOT / "policies" / "home5.yaml").read_text(encoding="utf-8")
DOCUMENTED = """\
version: 1
rules:
- name: embed-fp8
  match:   {stage: embed, model: "*-fp8"}
  require: {vram: 10GiB, compute_capability: ">=8.9", features: [fp8], role: batch, driver: ">=550", ram: 8GiB, cpus: 2}
  allow:   [{device: "5090"}, {host: "xps*"}]
  deny:    [{role: chat-llm}]
  prefer:  [{by: speed, weight: 100}, {by: data_local, weight: 20}, {device: "5090", weight: 10}]
  share:   {max_per_gpu: 4}
  priority: batch
  on_oom:  {grow: 1.5, max: 24GiB, retries: 2}
reserve:
- {name: chat, device: 4090l, vram: 12GiB, for: {stage: chat}}
hosts:
- {match: {host: m18r2}, when: {idle: ">=15m", power: mains, hours: "22:00-08:00"}, otherwise: [interactive]}
"""


def rules(*lines: str) -> str:
    return "version: 1\nrules:\n" + "".join(f"- {{{line}}}\n" for line in lines)


def mistakes(*sources: tuple[str, str, Layer]) -> list[str]:
    with pytest.raises(MalformedFile) as caught:
        parse_policies(sources)
    return str(caught.value).splitlines()


def test_the_documented_example() -> None:
    policy = parse_policy(DOCUMENTED, "p.yaml")
    assert policy == Policy(
        rules=(
            Rule(
                name="embed-fp8",
                match=Match(stage="embed", model="*-fp8"),
                require=Require(
                    vram_mib=10240, compute_capability=VersionSpec(">=8.9"), features=frozenset({"fp8"}), role="batch",
                    driver=VersionSpec(">=550"), ram_mib=8192, cpus=2,
                ),
                allow=(Selector(device="5090"), Selector(host="xps*")),
                deny=(Selector(role="chat-llm"),),
                prefer=(Preference("speed", 100), Preference("data_local", 20), Preference("selector", 10, Selector(device="5090"))),
                max_per_gpu=4,
                priority="batch",
                on_oom=OnOom(1.5, 24576, 2),
            ),
        ),
        reserves=(Reserve(name="chat", device="4090l", vram_mib=12288, match=Match(stage="chat")),),
        hosts=(HostRule(match=Selector(host="m18r2"), idle_s=900, power="mains", hours=(1320, 480), otherwise=frozenset({"interactive"})),),
    )  # fmt: skip


def test_each_clause_knows_its_place() -> None:
    policy = parse_policy(DOCUMENTED, "p.yaml")
    rule = policy.rules[0]
    assert {path: (ref.line, ref.col) for path, ref in rule.at.items()} == {
        "": (3, 9), "match": (4, 3), "match.stage": (4, 13), "match.model": (4, 27),
        "require": (5, 3), "require.vram": (5, 13), "require.compute_capability": (5, 26), "require.features": (5, 55),
        "require.role": (5, 72), "require.driver": (5, 85), "require.ram": (5, 102), "require.cpus": (5, 113),
        "allow": (6, 3), "allow.0": (6, 13), "allow.1": (6, 31), "deny": (7, 3), "deny.0": (7, 13),
        "prefer": (8, 3), "prefer.0": (8, 13), "prefer.1": (8, 39), "prefer.2": (8, 69),
        "share": (9, 3), "share.max_per_gpu": (9, 13), "priority": (10, 3),
        "on_oom": (11, 3), "on_oom.grow": (11, 13), "on_oom.max": (11, 24), "on_oom.retries": (11, 36),
    }  # fmt: skip
    assert {(ref.file, ref.name) for ref in rule.at.values()} == {("p.yaml", "embed-fp8")}
    assert policy.reserves[0].source == SourceRef("p.yaml", 13, 3, "chat")
    assert policy.hosts[0].source == SourceRef("p.yaml", 15, 3, "hosts: host m18r2")


def test_defaults_and_short_forms() -> None:
    text = (
        rules("name: a, on_oom: {}", "name: b, match: {}, require: {compute_capability: '8.9'}, exclusive: false")
        + "hosts:\n- {match: {role: '*'}, when: {idle: 15m}}\n- {match: {host: a}, when: {idle: '>= 90s', hours: '0:00-6:30'}}\n"
    )
    policy = parse_policy(text, "p")
    assert policy.rules[0].on_oom == OnOom()
    assert policy.rules[1].require == Require(compute_capability=VersionSpec(">=8.9"))
    assert (policy.rules[1].match, policy.rules[1].exclusive, policy.rules[0].exclusive) == (Match(), False, None)
    assert [(h.idle_s, h.hours, h.otherwise) for h in policy.hosts] == [(900, None, frozenset()), (90, (0, 390), frozenset())]


def test_weights_of_users_stand_the_most_specific_first() -> None:
    policy = parse_policy('version: 1\nfair_share: {"*": 1, "guest-*": 0.25, guest-anna: 2, "?ob": 3}\n', "p")
    assert policy.weights == (("guest-anna", 2), ("guest-*", 0.25), ("?ob", 3), ("*", 1))
    assert [policy.weight_of(user) for user in ("guest-anna", "guest-b", "bob", "eve", None)] == [2, 0.25, 3, 1, 1]


def test_a_file_that_says_nothing_is_a_policy() -> None:
    assert parse_policy("version: 1\n", "p") == parse_policies([]) == Policy()


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    assert parse_policy("\ufeff" + DOCUMENTED.replace("\n", "\r\n"), "p") == parse_policy(DOCUMENTED, "p")


def test_aliases_are_read() -> None:
    text = "version: 1\nrules:\n- {name: a, match: &m {stage: s}, deny: &d [{role: r}]}\n- {name: b, match: *m, deny: *d}\n"
    policy = parse_policy(text, "p")
    assert policy.rules[0].deny == policy.rules[1].deny
    assert policy.rules[1].source("deny").line == 4


def test_a_newer_version_is_told_before_its_keys() -> None:
    with pytest.raises(NewerFormat, match="format version 2, and this release reads up to 1"):
        parse_policy("version: 2\nnovelties: []\n", "p")


# Several files


def test_files_of_one_layer_stand_side_by_side_in_any_order() -> None:
    one, other = rules("name: a, match: {stage: a}, priority: idle"), rules("name: b, match: {stage: b}, priority: idle")
    policy = parse_policies([(one, "1", "human"), (other, "2", "human")])
    assert [(r.name, r.source().file) for r in policy.rules] == [("a", "1"), ("b", "2")]


def test_a_higher_layer_replaces_clause_by_clause() -> None:
    low = rules("name: a, match: {stage: s}, deny: [{role: x}, {role: y}], require: {vram: 2GiB, ram: 1GiB}, priority: idle")
    high = rules("name: a, deny: [], require: {vram: 1GiB}")
    for order in ((0, 1), (1, 0)):
        sources: list[tuple[str, str, Layer]] = [(low, "low", "generated"), (high, "high", "human")]
        (rule,) = parse_policies([sources[i] for i in order]).rules
        assert rule == Rule(
            name="a", match=Match(stage="s"), deny=(), require=Require(vram_mib=1024), priority="idle", layer="human",
        )  # fmt: skip
        files = {path: ref.file for path, ref in rule.at.items()}
        assert files == {
            "": "high", "deny": "high", "require": "high", "require.vram": "high",
            "match": "low", "match.stage": "low", "priority": "low",
        }  # fmt: skip


def test_an_empty_list_of_wishes_lifts_a_lower_one() -> None:
    low, high = rules("name: a, prefer: [{by: speed, weight: 1}]"), rules("name: a, prefer: []")
    policy = parse_policies([(low, "low", "generated"), (high, "high", "human")])
    assert resolve(Demand(), parse_policy(low, "low")).prefer == (Preference("speed", 1),)
    assert resolve(Demand(), policy).prefer is None


def test_a_higher_match_replaces_the_lower_one() -> None:
    low, high = rules("name: a, match: {stage: s}, priority: idle"), rules("name: a, match: {model: m}")
    assert mistakes((high, "high", "human"))[0].endswith("exclusive, priority, on_oom")
    high = rules("name: a, match: {model: m}, exclusive: true")
    (rule,) = parse_policies([(low, "low", "generated"), (high, "high", "human")]).rules
    assert (rule.match, rule.priority, rule.exclusive) == (Match(model="m"), "idle", True)


def test_three_layers() -> None:
    texts = {layer: rules(f"name: a, priority: {p}", f"name: {layer}, deny: [{{role: r}}]") for layer, p in
             (("human", "idle"), ("built-in", "batch"), ("generated", "interactive"))}  # fmt: skip
    policy = parse_policies([(text, layer, layer) for layer, text in texts.items()])  # type: ignore[misc]  # they are layers
    assert {r.name: (r.layer, r.priority) for r in policy.rules} == {
        "a": ("human", "idle"), "built-in": ("built-in", None), "generated": ("generated", None), "human": ("human", None),
    }  # fmt: skip


def test_reserves_hosts_and_weights_of_a_higher_layer() -> None:
    entry = "reserve: [{{name: r, device: d, vram: {n}GiB, for: {{stage: s}}}}]\nhosts: [{{match: {{host: h}}, when: {{idle: {n}m}}}}]\n"
    text = "version: 1\n" + entry + 'fair_share: {{"*": {n}, u{n}: {n}}}\n'
    low, high = text.format(n=1), text.format(n=2)
    policy = parse_policies([(high, "high", "human"), (low, "low", "generated")])
    assert [(r.vram_mib, r.source and r.source.file) for r in policy.reserves] == [(2048, "high")]
    assert [h.idle_s for h in policy.hosts] == [120]
    assert dict(policy.weights) == {"*": 2, "u1": 1, "u2": 2}


def test_owner_entries_of_one_layer_add_up() -> None:
    one = "version: 1\nhosts: [{match: {host: h}, when: {power: mains}}, {match: {host: h}, when: {idle: 1m}}]\n"
    assert len(parse_policies([(one, "1", "human"), (one, "2", "human")]).hosts) == 4


def test_a_name_in_two_files_of_a_layer() -> None:
    one = rules("name: a, priority: idle") + "reserve: [{name: r, device: d, vram: 1GiB, for: {stage: s}}]\n"
    assert mistakes((one, "1.yaml", "human"), (one, "2.yaml", "human")) == [
        "2.yaml:3:10: rule 'a' is in 1.yaml:3 already; give each rule its own name",
        "2.yaml:4:11: reserve 'r' is in 1.yaml:4 already; give each reserve its own name",
    ]


def test_weights_of_several_files() -> None:
    def share(weights: str) -> str:
        return f"version: 1\nfair_share: {{{weights}}}\n"

    policy = parse_policies(
        [(share('"*": 1, a: 2'), "1", "human"), (share('"a*": 3'), "2", "human"), (share('b: 9, "a": 8'), "3", "generated")]
    )
    assert policy.weights == (("a", 2), ("a*", 3), ("*", 1), ("b", 9))
    assert mistakes((share('"*": 1, "*x": 4'), "1", "human"), (share('"*": 1, "y*": 5'), "2", "human")) == [
        "2:2:14: '*' (1:2) has a weight already; keep one of them",
        "2:2:22: 'y*' and '*x' (1:2) can match the same user, are equally specific, and differ; make one of them more specific",
    ]


def test_nothing_decides_between_rules_of_two_files() -> None:
    one, other = rules("name: a, match: {stage: s}, priority: idle"), rules("name: b, match: {model: m}, priority: batch")
    (told,) = mistakes((one, "1.yaml", "human"), (other, "2.yaml", "human"))
    assert told.startswith(
        "2.yaml:3:32: rule 'b' and rule 'a' (1.yaml:3) can match the same work, are equally specific, and both set priority;"
    )
    assert len(parse_policies([(one, "1.yaml", "human"), (other, "2.yaml", "generated")]).rules) == 2


@pytest.mark.parametrize(
    ("one", "other", "ambiguous"),
    [
        ("match: {stage: s}, allow: [{role: r}]", "match: {stage: t}, allow: [{role: r}]", False),
        ("match: {stage: s}, allow: [{role: r}]", "match: {model: t}, prefer: [{role: r, weight: 1}]", False),
        (
            "match: {stage: s}, deny: [{role: r}], require: {cpus: 1}",
            "match: {stage: s}, deny: [{role: r}], require: {cpus: 2}",
            False,
        ),
        ("match: {stage: s}, share: {max_per_gpu: 2}", "match: {model: long}, share: {max_per_gpu: 2}", False),
        ("match: {stage: 's*'}, share: {max_per_gpu: 2}", "match: {stage: '*s'}, share: {max_per_gpu: 2}", True),
        ("match: {stage: 'a*'}, on_oom: {}", "match: {stage: 'b*'}, on_oom: {}", False),
        ("match: {stage: 'a?'}, on_oom: {}", "match: {stage: '?b'}, on_oom: {}", True),
        ("match: {stage: '[ab]x'}, on_oom: {}", "match: {stage: '[cd]x'}, on_oom: {}", False),
        ("priority: idle", "priority: batch", True),
        ("match: {priority: batch}, share: {max_per_gpu: 2}", "match: {user: guest}, share: {max_per_gpu: 2}", True),
        ("match: {priority: 'i*e'}, share: {max_per_gpu: 2}", "match: {priority: 'i?l'}, share: {max_per_gpu: 2}", False),
        ("match: {priority: 'ba*'}, share: {max_per_gpu: 2}", "match: {priority: '*tc'}, share: {max_per_gpu: 2}", False),
    ],
)
def test_which_rules_are_ambiguous(one: str, other: str, ambiguous: bool) -> None:
    text = rules(f"name: a, {one}", f"name: b, {other}")
    if ambiguous:
        (told,) = mistakes((text, "p", "human"))
        assert "rule 'b' and rule 'a' (p:3)" in told
    else:
        assert len(parse_policy(text, "p").rules) == 2


def test_a_mistake_hides_no_other() -> None:
    bad = rules(
        "name: a, priority: high",
        "name: b, match: {stage: s}, priority: idle",
        "name: c, match: {model: m}, priority: idle",
        "name: b, deny: []",
    )
    told = mistakes((bad, "1", "human"), ("version: one\n", "2", "human"), (rules("name: c, deny: []"), "3", "human"))
    assert [line.split(" ")[0] for line in told] == ["1:3:23:", "1:5:32:", "1:6:10:", "2:1:10:", "3:3:10:"]


def test_merge_takes_the_lower_first() -> None:
    low = parse_policy(rules("name: a, priority: idle", "name: b, deny: [{role: r}]"), "low", "generated")
    high = parse_policy(rules("name: a, priority: batch"), "high", "human")
    assert [(r.name, r.priority, r.layer) for r in merge([low, high]).rules] == [("a", "batch", "human"), ("b", None, "generated")]
    assert merge([]) == Policy()
    assert merge([low]) == low
    with pytest.raises(MalformedFile, match="equally specific"):
        merge([high, parse_policy(rules("name: c, priority: idle"), "other")])


# What is shipped, and what may come


def test_the_shipped_policy() -> None:
    policy = parse_policy(HOME5, "home5.yaml")
    assert (len(policy.rules), len(policy.reserves), len(policy.hosts)) == (14, 1, 2)
    said = {
        name
        for r in policy.rules
        for name in ("require", "allow", "deny", "prefer", "max_per_gpu", "exclusive", "priority", "on_oom")
        if getattr(r, name) is not None
    }
    assert len(said) == 8, "the example shows every clause"


def test_the_digest_tells_what_is_said_and_not_where() -> None:
    policy = parse_policy(HOME5, "a.yaml")
    assert policy.digest == parse_policy("# one more line\n" + HOME5, "b.yaml").digest
    changed = dataclasses.replace(policy, rules=policy.rules[:-1])
    assert policy.digest != changed.digest != parse_policy("version: 1\n", "c").digest
    code = (
        "import sys; from dgpunet_dask.placement.policy_file import parse_policy; print(parse_policy(sys.stdin.read(), 'x').digest)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], input=DOCUMENTED.replace("[fp8]", "[fp8, bf16, fp4, a, b]"), env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1


WORDS = ["name", "match", "require", "allow", "prefer", "hosts", "when", "5090", "8.9", "-1", "0GiB", "null", "{}", "[]", "*", "&a", "*a", "!!int", "\t", "[", "]", "{", "}", ":", "- ", "\n", '"', "'", "é", "\x00", "---", "#", "<<", "1e999", "~", "yes", "?", "|", "%"]  # fmt: skip


def mutated(text: str, seed: int) -> str:
    """Return `text` with a few words put in, pieces taken out, doubled or exchanged."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 1, 2, 5, 20, 80]))
        other = chance.randrange(len(text) + 1)
        piece = chance.choice([chance.choice(WORDS), "", text[start:end] * 2, text[other : other + end - start]])
        text = text[:start] + piece + text[end:]
    return text


def outcome(text: str) -> Policy | list[Problem] | None:
    """Return what `text` gives; ``None`` for a newer version."""
    try:
        return parse_policy(text, "p")
    except MalformedFile as error:
        return error.problems
    except NewerFormat:
        return None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([DOCUMENTED, HOME5]))
def test_whatever_a_file_holds_gives_a_policy_or_its_mistakes(home5: Fleet, seed: int, text: str) -> None:
    broken = mutated(text, seed)
    found = outcome(broken)
    if isinstance(found, list):
        lines = broken.count("\n") + 2
        assert found
        assert all(p.file == "p" and 1 <= p.line <= lines and p.col >= 1 and p.what for p in found)
    elif found is not None:
        assert all(finding.line >= 1 for finding in lint(found, home5))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_a_policy_or_its_mistakes(text: str) -> None:
    assert outcome(text) != []
    assert outcome("version: 1\nrules: " + text) != []


def test_the_policies_in_the_guide_are_right() -> None:
    guide = (ROOT / "docs" / "howto" / "policy.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(version: 1\n.*?)^```", guide, re.MULTILINE | re.DOTALL)
    assert [len(parse_policy(text, "guide").rules) for text in examples] == [2, 1]
    assert [lint(parse_policy(text, "guide")) for text in examples] == [(), ()]
