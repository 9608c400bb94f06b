"""Jobs: data sets of prompts to verified shards. The only part of attrib that keeps state, and all of it in a folder.

`config` and `make` say what is to be done and fix it; `folder` and `records` are what lies on the disk; `shard` does one
shard and `worker` one after another; `engines` place them; `run` does what is missing; `status`, `verify` and `tidy` look
after it. docs/jobs.md tells it to users.
"""
