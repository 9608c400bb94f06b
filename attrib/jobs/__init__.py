"""Jobs: data sets of prompts to verified shards. The only part of attrib that keeps state, and all of it in a folder.

`kind` says what a kind of job is, and `kinds` has one module for each: edges, graphs, surveys of latents, tasks. `told` and `config` say
what is to be done; `source`, `ids` and `make` read the prompts and fix it; `folder` and `records` are what lies on the disk; `shard`
does one shard and `worker` one after another; `engines` place them; `run` does what is missing; `status`, `verify` and `tidy` look
after it. `surveys` is a job in this process, of parts in memory. docs/jobs.md tells it to users.
"""
