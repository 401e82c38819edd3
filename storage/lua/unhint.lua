#!lua flags=allow-oom
-- unhint: removes a wake hint that nobody has touched since it was looked at. Runs on a full server too.
--
-- KEYS  1 shard of the wake index (sorted set)
-- ARGV  1 session   2 score as observed
-- returns 1 if it was removed, else 0
--
-- Invariant: who writes the hint changes its score, so a hint written after the look survives.

if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
