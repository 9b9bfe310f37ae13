"""What stages count, merged into the metrics of a job."""

from __future__ import annotations

from dgpunet_dask.model.stage import Stage, merge_counts


def test_a_group_is_there_before_anything_is_counted_in_it() -> None:
    stage, total = Stage(), {}
    stage.count("files", 0)
    stage.count("skipped.", 0)
    merge_counts(total, stage.take_counts())
    assert total == {"files": 0, "skipped": {}}
    stage.count("skipped.binary")
    stage.count("skipped.", 0)
    merge_counts(total, stage.take_counts())
    assert total == {"files": 0, "skipped": {"binary": 1}}
