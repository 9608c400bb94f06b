"""Engines: where shards are done. What a shard is, `attrib.jobs.shard` alone knows; an engine only places it."""

from attrib.jobs.engines.engine import Engine, JobError
from attrib.jobs.engines.queue import Queue

__all__ = ["Engine", "JobError", "Queue"]
