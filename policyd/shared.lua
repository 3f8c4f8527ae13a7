-- What a call can ask of the script, and the transactions that it is about; shared_windows.lua comes before.

-- What a transaction was charged: `runs` (stamp, events, stamp, events...) by the limit's name; a value and its stamp.
local function read_record(key)
  local text = key and call("GET", key)
  local m, r, b, since, runs = 0, 0, 0, 0, {}
  if text then
    m, r, b, since, runs = unpack(cmsgpack.unpack(text))
  end
  return { key = key, m = m, r = r, b = b, epoch = since, runs = runs }
end

local function write_record(record)
  if not record.key then
    return
  elseif record.m == 0 and record.r == 0 then
    call("DEL", record.key)
  else
    local text = cmsgpack.pack({ record.m, record.r, record.b, record.epoch, record.runs })
    call("SET", record.key, text, "PX", REMEMBERED)
  end
end

-- Give back all but `most` of the events in runs: the oldest first, or the latest.
local function keep(limit, runs, most, latest_first)
  local total = 0
  for i = 2, #runs, 2 do
    total = total + runs[i]
  end
  while total > most do
    local at = latest_first and #runs - 1 or 1
    local taken = math.min(runs[at + 1], total - most)
    take(limit, runs[at], taken)
    total = total - taken
    runs[at + 1] = runs[at + 1] - taken
    if runs[at + 1] == 0 then
      table.remove(runs, at + 1)
      table.remove(runs, at)
    end
  end
end

-- Give back what a transaction was charged above its target.
local function give_back(limits, record, target)
  local message = target.m < record.m
  for _, limit in ipairs(limits) do
    local runs = record.runs[limit.name]
    if runs and limit.kind == "r" then
      keep(limit, runs, target.r)
    elseif runs and message and limit.distinct then
      take_back(limit, runs[1], runs[2])
    elseif runs and message then
      keep(limit, runs, 0)
    end
    if runs and (message and limit.kind ~= "r" or #runs == 0) then
      record.runs[limit.name] = nil
    end
  end
  record.r = math.min(record.r, target.r)
  if message then
    record.m, record.b, target.b = 0, 0, 0
  end
end

-- By how much the target raises a limit's count, and the value that is seen.
local function difference(limit, record, target)
  if limit.kind == "r" then
    return target.r - record.r
  elseif limit.kind == "m" then
    return target.m - record.m
  elseif limit.kind == "b" then
    local counted, runs = 0, record.runs[limit.name] or {}
    for i = 2, #runs, 2 do
      counted = counted + runs[i]
    end
    limit.counted = counted
    return target.b == record.b and 0 or target.b - counted
  end
  local value = target[limit.kind]
  if value == "" or target.m == record.m then
    return 0
  end
  count(limit)
  return call("ZSCORE", limit.key, value) and 0 or 1, value
end

-- Find what the target exceeds: the first limit that stops it, and those before it that let it pass.
local function check(limits, record, target, at)
  local passing = {}
  for _, limit in ipairs(limits) do
    limit.more, limit.value = difference(limit, record, target)
    if limit.key and limit.more > 0 and stamp_of(limit, at) + limit.period <= now then
      limit.more, limit.value = 0, nil -- it has left already
    end
    if limit.more > 0 then
      limit.reached = (limit.key and count(limit) or record.r) + limit.more
      if limit.reached > limit.most then
        local over = string.format("[%d,%.0f,%.0f]", limit.place, limit.reached, limit.key and resets_in(limit) or -1)
        if limit.stops then
          return over, passing
        elseif limit.kind ~= "b" or record.b == 0 or limit.counted > 0 then -- else it was told when it was declared
          passing[#passing + 1] = over
        end
        limit.more, limit.value = 0, nil
      end
    end
  end
  return nil, passing
end

-- Charge a transaction its target; return the windows that have come near to their maximum.
local function charge(limits, record, target, at)
  local near = {}
  for _, limit in ipairs(limits) do
    local runs = record.runs[limit.name] or {}
    if limit.value then
      see(limit, limit.value, at)
      runs = { limit.value, at }
    elseif limit.key and limit.more > 0 then
      local stamp = stamp_of(limit, at)
      add(limit, stamp, limit.more)
      if runs[#runs - 1] == stamp then
        runs[#runs] = runs[#runs] + limit.more
      else
        runs[#runs + 1], runs[#runs + 2] = stamp, limit.more
      end
    elseif limit.key and limit.more < 0 then
      keep(limit, runs, limit.counted + limit.more, true)
    end
    if limit.key and #runs > 0 then
      record.runs[limit.name] = runs
    end
    if limit.key and limit.more > 0 and limit.reached >= limit.near then
      near[#near + 1] = string.format("[%d,%.0f]", limit.place, limit.reached)
    end
  end
  record.m, record.r, record.b = target.m, target.r, target.b
  return near
end

-- Tell whether the difference between what was charged and the target concerns a window.
local function concerns_windows(limits, record, target)
  local message, recipients = target.m ~= record.m or target.b ~= record.b, target.r ~= record.r
  for _, limit in ipairs(limits) do
    if limit.key and (message and limit.kind ~= "r" or recipients and limit.kind == "r") then
      return true
    end
  end
  return false
end

-- The reply as JSON; 0 where there is nothing to tell, as is mostly so.
local function told(lock, stop, passing, near)
  local parts = {}
  if lock then
    parts[1] = '"lock":' .. cjson.encode(lock)
  end
  if stop then
    parts[#parts + 1] = '"stop":' .. stop
  end
  if passing[1] then
    parts[#parts + 1] = '"passing":[' .. table.concat(passing, ",") .. "]"
  end
  if near[1] then
    parts[#parts + 1] = '"near":[' .. table.concat(near, ",") .. "]"
  end
  return parts[1] and "{" .. table.concat(parts, ",") .. "}" or 0
end

-- Have a transaction stand at a target. ARGV: 3 microseconds since it happened, 4 "1" to count without checking,
-- 5 messages, 6 recipients, 7 bytes (0: not known), 8 the client, 9 the sender, both as digests or "".
-- Where a lock is in force, nothing is charged unless by force; what is too much is given back all the same.
local function settle()
  local force = ARGV[4] == "1"
  local limits, record_key = read_limits(10, force)
  local record = read_record(record_key)
  local target = { m = tonumber(ARGV[5]), r = tonumber(ARGV[6]), b = tonumber(ARGV[7]), c = ARGV[8], s = ARGV[9] }
  if target.m == 0 or target.b == 0 then
    target.b = target.m == 0 and 0 or record.b
  end
  local lock, stop, passing, near = call("GET", lock_key), nil, {}, {}
  if target.m == record.m and target.r == record.r and target.b == record.b then
    if record_key then
      call("PEXPIRE", record_key, REMEMBERED)
    end
    return told(lock, stop, passing, near)
  end
  local windows = concerns_windows(limits, record, target)
  if windows then
    load_counts(limits, lock)
    if record.epoch ~= epoch then
      record.epoch, record.runs = epoch, {}
    end
  end
  give_back(limits, record, target)
  if force or not lock then
    local at = windows and now - ARGV[3]
    stop, passing = check(limits, record, target, at)
    if not stop then
      near = charge(limits, record, target, at)
      if windows then
        keep_for(state, longest)
      end
    end
  end
  write_record(record)
  return told(lock, stop, passing, near)
end

if ARGV[1] == "settle" then -- nearly all calls are; what follows is not made ready for them
  return settle()
end

local operations = {}

-- Tell the lock, and of each limit the count and when it resets; -1 where there is nothing to tell.
function operations.show()
  local limits, lock = read_limits(3, false), call("GET", lock_key)
  load_counts(limits, lock)
  local reply = { lock }
  for _, limit in ipairs(limits) do
    reply[#reply + 1] = limit.key and count(limit) or -1
    reply[#reply + 1] = limit.key and resets_in(limit) or -1
  end
  return reply
end

-- Put a lock in force, in place of any that there is; return that. ARGV: 3 its text, 4 milliseconds, "" for ever.
function operations.lock()
  local before, text, milliseconds = call("GET", lock_key), ARGV[3], tonumber(ARGV[4])
  if not milliseconds then
    call("SET", lock_key, text)
    call("HDEL", state, "locked")
    return before
  end
  call("SET", lock_key, text, "PX", milliseconds)
  call("HSET", state, "locked", 1)
  if call("PTTL", state) < milliseconds then
    call("PEXPIRE", state, milliseconds + REMEMBERED)
  end
  return before
end

-- Free the account and forget its counts; return the lock that was in force.
function operations.unlock()
  local before = call("GET", lock_key)
  call("DEL", lock_key)
  forget_counts()
  return before
end

-- Forget the account's counts.
function operations.reset()
  forget_counts()
  return 0
end

-- Count again what one node has counted, after the store has lost its data; once, however often it is told.
-- ARGV: 3 the node, 4 how many windows follow: each a limit's place, then microseconds since and events, in pairs; in
-- place of the events a client, or a sender, in hex digits.
function operations.refill()
  local windows = tonumber(ARGV[4])
  local limits = read_limits(5 + windows, true)
  load_counts(limits, call("GET", lock_key))
  if call("HSETNX", state, "filled " .. ARGV[3], 1) == 0 then
    return 0
  end
  for i = 5, 4 + windows do
    local place, events = string.match(ARGV[i], "^(%d+)(.*)$")
    local limit, runs = limits[place + 1], {}
    count(limit)
    for since, what in string.gmatch(events, "(%-?%d+) (%x+)") do
      local stamp = stamp_of(limit, math.min(now - since, now))
      if stamp + limit.period > now and limit.distinct then
        see(limit, (string.gsub(what, "%x%x", function(digits) return string.char(tonumber(digits, 16)) end)), stamp)
      elseif stamp + limit.period > now then
        runs[#runs + 1], runs[#runs + 2] = stamp, tonumber(what)
      end
    end
    if #runs > 0 then
      merge(limit, runs)
    end
  end
  keep_for(state, longest)
  return 0
end

return operations[ARGV[1]]()
