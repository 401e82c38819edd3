#!lua flags=no-writes
-- restore_points: the head and what a wake can go back to, as of one moment.
--
-- KEYS  1 head (hash)   2 checkpoints (list)
-- ARGV  none
-- returns {all of head, all of checkpoints}

return {redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1)}
