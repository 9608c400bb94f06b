"""Engines: where shards are done. What a shard is, `attrib.jobs.shard` alone knows; an engine only places it."""

from attrib.jobs.engines.queue import Engine, JobError, Queue

__all__ = ["Engine", "JobError", "Queue"]
