"""Posts → shards on Ray: units, teacher pool, commit, resume, retry of failures."""
