"""The thin adapter to dask.distributed: what the pure core decides, applied to a stock scheduler and its workers."""
