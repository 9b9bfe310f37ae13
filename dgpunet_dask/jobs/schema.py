"""The ledger's tables: made so that the database itself refuses what `jobs.states` does not allow. Pure.

What a CHECK, a UNIQUE index or a foreign key can hold, these hold; what needs a look at another row, a trigger holds. Raw SQL cannot break
them. What no single statement can know (that a leased unit has a live attempt, say) is looked for by the queries of `FAULTS`.
"""

# ruff: noqa: S608  # statements are put together from our own words; values travel as parameters

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dgpunet_dask.jobs.causes import CAUSES
from dgpunet_dask.jobs.states import (
    ATTEMPT_STATES,
    ATTEMPT_TRANSITIONS,
    EPOCHS_A_BOOT,
    FINAL_STATES,
    JOB_STATES,
    JOB_TRANSITIONS,
    OPEN,
    UNIT_STATES,
    UNIT_TRANSITIONS,
)

#: In the file's header: tells our file from other databases ("DGPU").
APPLICATION_ID: Final = 0x44475055


def words(values: Iterable[str]) -> str:
    """Return a list of SQL strings in parentheses. The values are our own names, never a user's."""
    return "(" + ", ".join(f"'{value}'" for value in sorted(values)) + ")"


def allowed(transitions: Mapping[str, frozenset[str]]) -> str:
    """Return the SQL condition that a change of `state` is one of `transitions`."""
    cases = " ".join(f"WHEN '{old}' THEN NEW.state IN {words(new)}" for old, new in transitions.items() if new)
    return f"(CASE OLD.state {cases} ELSE 0 END)"


def refuse(name: str, when: str, condition: str, why: str) -> str:
    """Return a trigger that refuses a statement `when` (such as ``INSERT ON units``) if `condition` holds."""
    return f"CREATE TRIGGER {name} BEFORE {when} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{why}'); END;"


_JOBS: Final = f"""
CREATE TABLE boots (boot INTEGER PRIMARY KEY CHECK (boot > 0), at_s REAL NOT NULL) STRICT;

CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY,
  job_id TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN {words(JOB_STATES)}),
  workload TEXT NOT NULL,
  digest TEXT NOT NULL,
  params TEXT NOT NULL CHECK (json_valid(params)),
  owner TEXT,
  operates INTEGER NOT NULL CHECK (operates IN (0, 1)),
  shared INTEGER NOT NULL CHECK (shared IN (0, 1)),
  key TEXT,
  after TEXT NOT NULL CHECK (json_valid(after)),
  array_id TEXT,
  allow_failed INTEGER NOT NULL CHECK (allow_failed >= 0),
  retry INTEGER NOT NULL CHECK (retry >= 0),
  submitted_s REAL NOT NULL,
  started_s REAL,
  ended_s REAL,
  tries INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
  passes INTEGER NOT NULL DEFAULT 0 CHECK (passes >= 0),
  error TEXT CHECK (error IS NULL OR json_valid(error)),
  exit_code INTEGER NOT NULL DEFAULT 0,
  metrics TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(metrics)),
  total INTEGER CHECK (total >= 0),
  CHECK ((state IN {words(FINAL_STATES)}) = (ended_s IS NOT NULL)),
  CHECK (state != 'done' OR (error IS NULL AND exit_code = 0)),
  CHECK (state IN {words(FINAL_STATES - {"done"})} OR error IS NULL)
) STRICT;

CREATE TABLE keys (
  owner TEXT NOT NULL,  -- '' for a job of nobody: NULL would never equal itself
  key TEXT NOT NULL,
  content TEXT NOT NULL,
  jobs TEXT NOT NULL CHECK (json_valid(jobs)),
  PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (seq INTEGER PRIMARY KEY, at_s REAL NOT NULL, job_id TEXT, kind TEXT NOT NULL, facts TEXT NOT NULL CHECK (json_valid(facts))) STRICT;
CREATE INDEX events_of_job ON events (job_id, seq);
"""

_UNITS: Final = f"""
CREATE TABLE units (
  id INTEGER PRIMARY KEY,
  job INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
  unit_id TEXT NOT NULL,
  number INTEGER NOT NULL CHECK (number >= 0),
  pass INTEGER NOT NULL CHECK (pass > 0),
  try_no INTEGER NOT NULL CHECK (try_no > 0),  -- of its last change by an attempt
  state TEXT NOT NULL DEFAULT 'ready' CHECK (state IN {words(UNIT_STATES)}),
  epoch INTEGER,
  results TEXT CHECK (results IS NULL OR json_valid(results)),
  counts TEXT CHECK (counts IS NULL OR json_valid(counts)),
  UNIQUE (job, unit_id),
  UNIQUE (job, pass, number),
  FOREIGN KEY (id, epoch) REFERENCES attempts (unit, epoch) DEFERRABLE INITIALLY DEFERRED,
  CHECK (state != 'committed' OR epoch IS NOT NULL),
  CHECK (state IN ('committed', 'dropped') OR epoch IS NULL),
  CHECK ((epoch IS NULL) = (results IS NULL) AND (epoch IS NULL) = (counts IS NULL))
) STRICT;

CREATE TABLE attempts (
  epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
  unit INTEGER NOT NULL REFERENCES units (id) ON DELETE CASCADE,
  slot INTEGER NOT NULL CHECK (slot IN (0, 1)),  -- 1: speculative
  state TEXT NOT NULL DEFAULT 'leased' CHECK (state IN {words(ATTEMPT_STATES)}),
  try_no INTEGER NOT NULL CHECK (try_no > 0),
  stage TEXT,  -- the last that was placed, on `device`
  device TEXT,
  host TEXT,
  leased_s REAL NOT NULL,
  ended_s REAL,
  seconds REAL,
  started INTEGER NOT NULL DEFAULT 0 CHECK (started IN (0, 1)),  -- something ran under it, as far as is known
  adopted INTEGER NOT NULL DEFAULT 0 CHECK (adopted IN (0, 1)),
  cause TEXT CHECK (cause IN {words(CAUSES)}),
  evidence TEXT CHECK (evidence IS NULL OR json_valid(evidence)),
  UNIQUE (unit, epoch),
  CHECK ((state IN {words(OPEN)}) = (ended_s IS NULL)),
  CHECK (state NOT IN ('failed', 'damaged') OR cause IS NOT NULL),
  CHECK (state NOT IN ('failed', 'committed', 'damaged') OR started)
) STRICT;

CREATE UNIQUE INDEX attempts_live ON attempts (unit, slot) WHERE state = 'leased';
CREATE UNIQUE INDEX attempts_committed ON attempts (unit) WHERE state = 'committed';
CREATE INDEX attempts_unknown ON attempts (unit) WHERE state = 'unknown';

-- Counted as they change, since a job has too many units to count them whenever somebody looks.
CREATE TABLE tallies (
  job INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
  done INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  reused INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0
) STRICT;
"""

_IN_FINAL: Final = f"NEW.state IN {words(FINAL_STATES)}"
_OPEN_OF_JOB: Final = (
    # From the few open attempts to their units: the other way round would look at each unit of the job.
    "EXISTS (SELECT 1 FROM attempts a INDEXED BY attempts_{index} CROSS JOIN units u ON u.id = a.unit WHERE u.job = NEW.seq AND a.state = '{state}')"
)
_TRIGGERS: Final = "\n".join([
    "CREATE TRIGGER jobs_counted AFTER INSERT ON jobs BEGIN INSERT INTO tallies (job) VALUES (NEW.seq); END;",
    refuse("jobs_new", "INSERT ON jobs", "NEW.state != 'queued'", "a new job is queued"),
    refuse("jobs_move", "UPDATE OF state ON jobs", f"NOT {allowed(JOB_TRANSITIONS)}", "a job cannot go there from its state"),
    refuse("jobs_end", "UPDATE OF state ON jobs", f"{_IN_FINAL} AND ({_OPEN_OF_JOB.format(index='live', state='leased')} OR {_OPEN_OF_JOB.format(index='unknown', state='unknown')})",
           "attempts of the job are open"),
    refuse("jobs_done", "UPDATE OF state ON jobs", "NEW.state = 'done' AND NEW.passes > 0 AND NEW.total IS NOT"
           " (SELECT done + failed FROM tallies WHERE job = NEW.seq)", "units of the job are not done"),
    refuse("jobs_fixed", "UPDATE OF seq, job_id ON jobs", "1", "a job keeps its id"),
    refuse("jobs_stay", "DELETE ON jobs", f"OLD.state NOT IN {words(FINAL_STATES)}", "a job that has not ended stays"),
    refuse("units_stay", "DELETE ON units", "EXISTS (SELECT 1 FROM jobs WHERE seq = OLD.job)", "units go with their job"),
    refuse("attempts_stay", "DELETE ON attempts", "EXISTS (SELECT 1 FROM units WHERE id = OLD.unit)", "attempts go with their unit"),
    refuse("units_new", "INSERT ON units", "NEW.state != 'ready'", "a new unit is ready"),
    refuse("units_fixed", "UPDATE OF id, job, unit_id ON units", "1", "a unit keeps its id"),
    refuse("units_move", "UPDATE OF state ON units", f"NEW.state != OLD.state AND NOT {allowed(UNIT_TRANSITIONS)}",
           "a unit cannot go there from its state"),
    refuse("units_commit", "UPDATE OF state, epoch ON units",
           "NEW.epoch IS NOT NULL AND NOT EXISTS (SELECT 1 FROM attempts WHERE unit = NEW.id AND epoch = NEW.epoch AND state = 'committed')",
           "a unit is committed by a committed attempt"),
    refuse("units_uncommit", "UPDATE OF state, epoch ON units",
           "NEW.epoch IS NULL AND OLD.epoch IS NOT NULL AND EXISTS (SELECT 1 FROM attempts WHERE unit = NEW.id AND state = 'committed')",
           "what is committed stays"),
    refuse("units_lease", "UPDATE OF state ON units",
           "NEW.state = 'leased' AND NOT EXISTS (SELECT 1 FROM attempts WHERE unit = NEW.id AND state = 'leased')",
           "a leased unit has a live attempt"),
    refuse("units_free", "UPDATE OF state ON units",
           "NEW.state != 'leased' AND EXISTS (SELECT 1 FROM attempts WHERE unit = NEW.id AND state = 'leased')",
           "a unit with a live attempt is leased"),
    refuse("attempts_new", "INSERT ON attempts", "NEW.state != 'leased'", "a new attempt has a live lease"),
    refuse("attempts_epoch", "INSERT ON attempts", f"NEW.epoch / {EPOCHS_A_BOOT} IS NOT (SELECT max(boot) FROM boots)",
           "an epoch is of the present boot"),
    refuse("attempts_unit", "INSERT ON attempts", "NOT EXISTS (SELECT 1 FROM units u JOIN jobs j ON j.seq = u.job"
           " WHERE u.id = NEW.unit AND u.state IN ('ready', 'leased') AND j.state = 'running')",
           "only a unit that is not done, of a job that runs, is leased"),
    refuse("attempts_fixed", "UPDATE OF unit, epoch, slot ON attempts", "1", "an attempt keeps its lease"),
    refuse("attempts_move", "UPDATE OF state ON attempts", f"NOT {allowed(ATTEMPT_TRANSITIONS)}", "an attempt cannot go there from its state"),
    refuse("attempts_late", "UPDATE OF state ON attempts",
           f"NEW.state = 'committed' AND NEW.epoch / {EPOCHS_A_BOOT} IS NOT (SELECT max(boot) FROM boots)", "the epoch is not of the present boot"),
    refuse("attempts_kept", "UPDATE OF state ON attempts", "NEW.state = 'damaged' AND (SELECT j.state FROM units u JOIN jobs j ON j.seq = u.job"
           " WHERE u.id = NEW.unit) = 'done'", "what a done job has committed stays"),
    refuse("units_kept", "UPDATE OF state ON units", "NEW.state != 'committed' AND OLD.state = 'committed'"
           " AND (SELECT state FROM jobs WHERE seq = NEW.job) = 'done'", "what a done job has committed stays"),
    refuse("boots_grow", "INSERT ON boots", "NEW.boot <= (SELECT max(boot) FROM boots)", "boots grow"),
    refuse("boots_fixed", "UPDATE ON boots", "1", "boots stay"),
    refuse("boots_stay", "DELETE ON boots", "1", "boots stay"),
    """CREATE TRIGGER units_counted AFTER UPDATE OF state ON units WHEN NEW.state != OLD.state BEGIN
      UPDATE tallies SET
        done = done + (NEW.state = 'committed') - (OLD.state = 'committed'),
        failed = failed + (NEW.state IN ('failed', 'quarantined')) - (OLD.state IN ('failed', 'quarantined'))
      WHERE job = NEW.job AND (NEW.state IN ('committed', 'failed', 'quarantined') OR OLD.state IN ('committed', 'failed', 'quarantined'));
    END;""",
    """CREATE TRIGGER attempts_counted AFTER UPDATE OF started ON attempts WHEN NEW.started > OLD.started BEGIN
      UPDATE tallies SET attempts = attempts + 1 WHERE job = (SELECT job FROM units WHERE id = NEW.unit);
    END;""",
    refuse("attempts_unstart", "UPDATE OF started ON attempts", "NEW.started < OLD.started", "what has started has"),
    refuse("attempts_start", "INSERT ON attempts", "NEW.started", "a new attempt has not started"),
    """CREATE TRIGGER attempts_adopted AFTER UPDATE OF state ON attempts WHEN NEW.state = 'adopted' AND NEW.started BEGIN
      UPDATE tallies SET attempts = attempts - 1 WHERE job = (SELECT job FROM units WHERE id = NEW.unit);
    END;""",
])  # fmt: skip

#: What brings a file of one version to the next; the last version is the one that this release writes.
MIGRATIONS: Final[tuple[str, ...]] = (_JOBS + _UNITS + _TRIGGERS,)
VERSION: Final = len(MIGRATIONS)

#: By what is wrong: a query for what no constraint can hold, which finds nothing in a good ledger (job and unit of each fault).
FAULTS: Final[Mapping[str, str]] = {
    "a leased unit without a live attempt": """
        SELECT j.job_id, u.unit_id FROM units u JOIN jobs j ON j.seq = u.job
        WHERE u.state = 'leased' AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.unit = u.id AND a.state = 'leased')""",
    "a live attempt of a unit that is not leased": """
        SELECT j.job_id, u.unit_id FROM attempts a JOIN units u ON u.id = a.unit JOIN jobs j ON j.seq = u.job
        WHERE a.state = 'leased' AND u.state != 'leased'""",
    "an open attempt of a job that does not run": """
        SELECT j.job_id, u.unit_id FROM attempts a JOIN units u ON u.id = a.unit JOIN jobs j ON j.seq = u.job
        WHERE a.state IN ('leased', 'unknown') AND j.state != 'running'""",
    "a committed attempt whose results are not its unit's": """
        SELECT j.job_id, u.unit_id FROM attempts a JOIN units u ON u.id = a.unit JOIN jobs j ON j.seq = u.job
        WHERE a.state = 'committed' AND u.epoch IS NOT a.epoch""",
    "a unit of a done job that is neither committed, failed nor dropped": """
        SELECT j.job_id, u.unit_id FROM units u JOIN jobs j ON j.seq = u.job WHERE j.state = 'done' AND u.state IN ('ready', 'leased')""",
    "a done job whose units are not as many as its source gave": """
        SELECT j.job_id, '' FROM jobs j JOIN tallies t ON t.job = j.seq
        WHERE j.state = 'done' AND j.passes > 0 AND j.total IS NOT NULL AND t.done + t.failed != j.total""",
    "a tally that does not agree with the units": """
        SELECT j.job_id, '' FROM jobs j LEFT JOIN tallies t ON t.job = j.seq
        WHERE t.done IS NOT (SELECT count(*) FROM units u WHERE u.job = j.seq AND u.state = 'committed')
          OR t.failed IS NOT (SELECT count(*) FROM units u WHERE u.job = j.seq AND u.state IN ('failed', 'quarantined'))
          OR t.attempts IS NOT (SELECT count(*) FROM attempts a JOIN units u ON u.id = a.unit WHERE u.job = j.seq AND a.started AND a.state != 'adopted')""",
}
