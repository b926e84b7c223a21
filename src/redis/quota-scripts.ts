/**
 * What decides in Redis. Each script sees one client's keys alone, which have their hash tag in common, and runs as a whole
 * or, where Redis takes no writes, not at all. Times are milliseconds since 1970 by Redis's clock.
 *
 * A client's counters are fields of one hash: `<field>` is what is used, `<field> end` when its window ends. Its running calls
 * are members of sorted sets, with the time when they are over at the latest.
 */

/**
 * Counts a call by all of its limits, or by none when one of them does not allow it.
 *
 * KEYS[1]    the client's counters
 * KEYS[2..]  the sets of running calls that the call is to join
 *
 * ARGV[1]    the call's id; empty: count nothing, only look
 * ARGV[2]    milliseconds after which it is over at the latest
 * ARGV[3..]  for each set the most calls in it; then for each counter its field, limit, and amount, the longest that a window
 *            may last, and the ends of this window and of the next by the caller's clock, or 0 and 0
 *
 * Returns    the time; for each set the calls in it; for each counter what is used of it without this call, and when its
 *            window ends
 *
 * A window ends when it was said to when it began. A new one ends at the first of the given ends that is still to come, or
 * after the longest time.
 */
export const takeLua = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state, changes, lasts, fits = { now }, {}, 0, true

for set = 2, #KEYS do
  local running = redis.call('ZCOUNT', KEYS[set], now + 1, '+inf')
  fits = fits and running < tonumber(ARGV[set + 1])
  state[#state + 1] = running
end

for at = #KEYS + 2, #ARGV, 6 do
  local field, limit, amount, longest = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local stored = redis.call('HMGET', KEYS[1], field, field .. ' end')
  local used, ends = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
  if ends > now + longest then
    -- The clock was set back: the window would last too long.
    ends = now + longest
    redis.call('HSET', KEYS[1], field .. ' end', ends)
  elseif ends <= now then
    used, ends = 0, now + longest
    for given = at + 4, at + 5 do
      local fixed = tonumber(ARGV[given])
      if fixed > now then ends = math.min(ends, fixed) end
    end
  end
  fits = fits and used + amount <= limit
  state[#state + 1] = used
  state[#state + 1] = ends
  for _, value in ipairs({ field, used + amount, field .. ' end', ends }) do changes[#changes + 1] = value end
  lasts = math.max(lasts, ends - now)
end

if ARGV[1] == '' or not fits then return state end

local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms + 1000) end
end
if #changes > 0 then
  redis.call('HSET', KEYS[1], unpack(changes))
  keep(KEYS[1], lasts)
end
for set = 2, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[set], '-inf', now)
  redis.call('ZADD', KEYS[set], now + ARGV[2], ARGV[1])
  keep(KEYS[set], tonumber(ARGV[2]))
end
return state
`;

/**
 * Puts right what a call has taken, and counts it as running no more. A call that had joined a set and is in none any more
 * has been put right before, or was never counted, or is forgotten: then nothing changes. So it may be said again.
 *
 * KEYS[1]    the client's counters
 * KEYS[2..]  the sets that the call has joined
 *
 * ARGV[1]    the call's id
 * ARGV[2..]  for each counter its field, the end of the window that has counted the call, and the change; one whose window is
 *            another now stays as it is
 *
 * Returns    1 when it was put right, 0 when nothing changed
 */
export const releaseLua = `
local left = 0
for set = 2, #KEYS do left = left + redis.call('ZREM', KEYS[set], ARGV[1]) end
if #KEYS > 1 and left == 0 then return 0 end
for at = 2, #ARGV, 3 do
  if redis.call('HGET', KEYS[1], ARGV[at] .. ' end') == ARGV[at + 1] then
    redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 2])
  end
end
return 1
`;
