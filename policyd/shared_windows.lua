-- The counts and locks of one account, shared by many daemons: one call, done at once and wholly, or not at all.
--
-- A call names what a transaction shall stand at, never a step: the script keeps what the transaction was charged so
-- far, and charges or gives back the difference. The same call come twice counts once.
--
-- KEYS: 1 the account's state, 2 its lock, then one for each limit that has a window, then the transaction's record if
-- there is one. ARGV: 1 what to do, 2 the time in microseconds ("": the store's own), then what the operations in
-- shared.lua say, then the limits. This file and that one, put together, are the script.
--
-- What counts, and when it leaves, is as in window.py, distinct.py, transactions.py and charges.py. Times are whole
-- microseconds; a window's runs are a list of stamps, oldest first, each followed by -n where n events bear it, n > 1.
-- The state has the total of each window by the limit's name. A window without a total is empty, whatever its list
-- has: that is how all are forgotten at once. The state's epoch tells what was charged before from what came after.

local call, state, lock_key = redis.call, KEYS[1], KEYS[2]

local REMEMBERED = "300000" -- milliseconds for which a transaction is remembered beyond its last call
local STEPPED = 60000000 -- microseconds: an event so far ahead was stamped by a clock that has stepped back since
local MAX_VALUES = 1000 -- clients, or senders, that are remembered for one limit
local CHUNK = 100 -- elements of a list that are looked at, or written, at a time

local now = tonumber(ARGV[2])
local longest = 0 -- the longest of the limits' periods
local epoch = 0

-- The time: the store's, unless the caller has named one.
local function tell_time()
  if not now then
    local time = call("TIME")
    now = time[1] * 1000000 + time[2]
  end
end

-- The limits that ARGV has from `first` on. What counts without being checked (`force`) has no maximum.
local function read_limits(first, force)
  local limits, key = {}, 2
  for i = first, #ARGV do
    local kind, stops, period, most, near, slices, name =
      string.match(ARGV[i], "^(%l)(%d) (%d+) (%d+) (%d+) (%d+) (.+)$")
    period, slices = tonumber(period), tonumber(slices)
    local windowed = period > 0 -- else it is per message
    key = windowed and key + 1 or key
    limits[#limits + 1] = {
      place = i - first,
      kind = kind,
      name = name,
      stops = stops == "1",
      period = period,
      most = force and math.huge or tonumber(most),
      near = force and math.huge or tonumber(near),
      slices = slices,
      slice = slices > 0 and period / slices or 0,
      key = windowed and KEYS[key],
      distinct = kind == "c" or kind == "s",
      total = nil, -- as far as it is known
      oldest = nil, -- the oldest stamp, when the total was found out
      more = 0, -- what the call adds,
      value = nil, -- the value that it sees,
      counted = 0, -- the bytes that it was charged before,
      reached = 0, -- and what the count comes to
    }
    longest = math.max(longest, period)
  end
  return limits, KEYS[key + 1]
end

-- A whole number as text. (Numbers that are handed to the store take it longer.)
local function text_of(number)
  return string.format("%d", number)
end

-- Keep a key until the last event of a period has left, whatever slice it is in.
local function keep_for(key, period)
  call("PEXPIRE", key, text_of(math.ceil(period / 1000 * 61 / 60) + 1))
end

-- Forget all that was counted. What is given back later was counted before, and changes nothing.
local function forget_counts()
  epoch = (tonumber(call("HGET", state, "epoch")) or 0) + 1
  call("DEL", state)
  call("HSET", state, "epoch", epoch)
  call("PEXPIRE", state, 2 * REMEMBERED)
end

-- Find out what has been counted, and forget it where a lock that had an end is gone: the account does not relock.
local function load_counts(limits, lock)
  tell_time()
  local fields = {}
  for i, limit in ipairs(limits) do
    fields[i] = limit.name
  end
  local found = call("HMGET", state, "epoch", "locked", unpack(fields))
  epoch = tonumber(found[1]) or 0
  if found[2] and not lock then
    forget_counts()
    found = {}
  end
  for i, limit in ipairs(limits) do
    limit.total = tonumber(found[i + 2])
  end
end

local function set_total(limit, total)
  limit.total = total
  call("HSET", state, limit.name, text_of(total))
end

-- The stamp that an event at a time gets: where events share slices, the end of its slice, rounded up.
local function stamp_of(limit, at)
  if limit.slices == 0 then
    return at
  end
  local into = math.fmod(at, limit.period)
  return at - into + math.ceil(math.ceil(into * limit.slices / limit.period) * limit.period / limit.slices)
end

-- Forget the runs that have left; return the oldest stamp that stays.
local function leave(limit)
  local at, left, oldest = 0, 0, nil -- elements and events that leave
  repeat
    local elements = call("LRANGE", limit.key, at, at + CHUNK - 1)
    for i = 1, #elements do
      local number = tonumber(elements[i])
      if number > 0 and number + limit.period > now then
        oldest = number
        break
      end
      at = at + 1
      left = left + (number > 0 and 1 or -number - 1)
    end
  until oldest or #elements < CHUNK
  call("LTRIM", limit.key, at, -1)
  set_total(limit, oldest and limit.total - left or 0)
  return oldest
end

-- The number of different values in the window: those seen since it began. See `sightings`.
local function count_values(limit)
  local key = limit.key
  local left = now - limit.period
  call("ZREMRANGEBYSCORE", key, -left, left)
  for _, value in ipairs(call("ZRANGEBYSCORE", key, now + STEPPED, "+inf")) do
    call("ZADD", key, now, value)
  end
  return call("ZCOUNT", key, "(0", "+inf")
end

-- The number of events in a limit's window now.
local function count(limit)
  if not limit.total then
    call("DEL", limit.key)
    limit.total = 0
  elseif limit.distinct then
    limit.total = count_values(limit)
  elseif limit.total > 0 then
    local oldest = tonumber(call("LINDEX", limit.key, "0"))
    if not oldest then -- the store has evicted it
      set_total(limit, 0)
    elseif oldest + limit.period <= now then
      oldest = leave(limit)
    elseif oldest > now + STEPPED + limit.slice then
      oldest = now -- all are ahead of the clock: it has stepped back
      call("DEL", limit.key)
      call("RPUSH", limit.key, now, -limit.total)
    end
    limit.oldest = oldest
  end
  return limit.total
end

-- Microseconds until the oldest event of a window leaves; nil where there is none. It has been counted before.
local function resets_in(limit)
  local oldest = limit.oldest
  if limit.distinct then
    oldest = tonumber(call("ZRANGEBYSCORE", limit.key, "(0", "+inf", "WITHSCORES", "LIMIT", 0, 1)[2])
  end
  return oldest and oldest + limit.period - now
end

-- Put runs (stamp, events, stamp, events...) among those of a window that may be later.
local function merge(limit, runs)
  local stamps, events = {}, {}
  local function put(stamp, number)
    if not events[stamp] then
      stamps[#stamps + 1] = stamp
    end
    events[stamp] = (events[stamp] or 0) + number
  end
  for _, element in ipairs(call("LRANGE", limit.key, 0, -1)) do
    local number = tonumber(element)
    put(number > 0 and number or stamps[#stamps], number > 0 and 1 or -number - 1)
  end
  local total = limit.total
  for i = 1, #runs, 2 do
    put(runs[i], runs[i + 1])
    total = total + runs[i + 1]
  end
  table.sort(stamps)
  local elements = {}
  call("DEL", limit.key)
  for i, stamp in ipairs(stamps) do
    elements[#elements + 1] = stamp
    if events[stamp] > 1 then
      elements[#elements + 1] = -events[stamp]
    end
    if #elements >= CHUNK or i == #stamps then
      call("RPUSH", limit.key, unpack(elements))
      elements = {}
    end
  end
  set_total(limit, total)
  keep_for(limit.key, limit.period)
end

-- Count events in a window.
local function add(limit, stamp, events)
  local key = limit.key
  local tail = call("LRANGE", key, "-2", "-1")
  local last, number = tonumber(tail[#tail]) or 0, 1
  if last < 0 then
    last, number = tonumber(tail[1]), -last
  end
  if last > stamp then
    return merge(limit, { stamp, events })
  end
  if last < stamp and events == 1 then
    call("RPUSH", key, text_of(stamp))
  elseif last < stamp then
    call("RPUSH", key, stamp, -events)
  elseif number > 1 then
    call("LSET", key, -1, -number - events)
  else
    call("RPUSH", key, -1 - events)
  end
  set_total(limit, limit.total + events)
  keep_for(key, limit.period)
end

-- Take back events that got a stamp; what has left meanwhile is not there to be taken.
local function take(limit, stamp, events)
  local key = limit.key
  local at = limit.total and call("LPOS", key, stamp)
  if not at then
    return
  end
  local number = -(tonumber(call("LINDEX", key, at + 1)) or -1)
  local alone = number < 0 -- what follows is the next stamp
  number = alone and 1 or number
  local rest = math.max(number - events, 0)
  if rest > 1 then
    call("LSET", key, at + 1, -rest)
  elseif number > 1 then
    call("LSET", key, at + 1, "gone")
    call("LREM", key, 1, "gone")
  end
  if rest == 0 then
    call("LREM", key, 1, stamp)
  end
  set_total(limit, limit.total - number + rest)
end

-- A value's latest sightings that can be taken back, the latest first, and the one before those, which stands for good.
-- The set has the value with the stamp of its latest sighting. Its earlier ones are there by the value with a digit,
-- 1 to 3, and 0 for the one that stands for good, their stamps negative so that they are not counted.
local function sightings(limit, value)
  local found = call("ZMSCORE", limit.key, value, value .. "1", value .. "2", value .. "3", value .. "0")
  local seen, good = {}, found[5] and math.abs(found[5])
  for i = 1, 4 do
    local stamp = found[i] and math.abs(found[i])
    if stamp and not (i == 1 and stamp == good) then
      seen[#seen + 1] = stamp
    end
  end
  return seen, good
end

-- Write down the sightings of a value.
local function write_sightings(limit, value, seen, good)
  local key = limit.key
  call("ZREM", key, value, value .. "1", value .. "2", value .. "3", value .. "0")
  local latest = seen[1] or good
  if latest then
    call("ZADD", key, latest, value)
  end
  for i = 2, #seen do
    call("ZADD", key, -seen[i], value .. (i - 1))
  end
  if good then
    call("ZADD", key, -good, value .. "0")
  end
end

-- Count a value in a window.
local function see(limit, value, stamp)
  local seen, good = sightings(limit, value)
  seen[#seen + 1] = stamp
  table.sort(seen, function(one, other) return one > other end)
  if #seen > 4 then
    good = math.max(good or 0, table.remove(seen))
  end
  write_sightings(limit, value, seen, good)
  set_total(limit, count_values(limit))
  if limit.total > MAX_VALUES then -- the one that was not seen for longest makes room
    write_sightings(limit, call("ZRANGEBYSCORE", limit.key, "(0", "+inf", "LIMIT", 0, 1)[1], {})
  end
  keep_for(limit.key, limit.period)
end

-- Take back a sighting: the value counts from the one before, or not at all.
local function take_back(limit, value, stamp)
  local seen, good = sightings(limit, value)
  for i, known in ipairs(seen) do
    if known == stamp then
      table.remove(seen, i)
      return write_sightings(limit, value, seen, good)
    end
  end
end
