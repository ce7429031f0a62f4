-- domain/serving/limits.py transact, by the server's clock. One hash per limit: l (level, in units), t (microseconds, or the day's
-- number), v and n (a budget's value and version), h:<holder> (units it has), e:<holder> (until when it is believed).
-- ARGV: holder, microseconds of belief, holders; then per key: measure, value, version, used, back, need, mine (or -1).
-- Answers words: "1" and per key granted, level, held, age in microseconds; or "0", which key binds, left, wait (-1: never)
-- and per key 0, level, held, 0.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local today = math.floor(clock[1] / 86400)
local holder, belief, holders = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local rows, worst = {}, nil

local function later(one, other) -- whether `other` is to be told rather than `one`
  if not one then return true end
  if one.budget or other.budget then return other.budget and not one.budget end
  if one.wait < 0 or other.wait < 0 then return other.wait < 0 and one.wait >= 0 end
  return other.wait > one.wait
end

for i, key in ipairs(KEYS) do
  local a = 3 + (i - 1) * 7
  local measure = ARGV[a + 1]
  local row = {key = key, measure = measure, value = tonumber(ARGV[a + 2]), version = tonumber(ARGV[a + 3])}
  local used, back, mine = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5]), tonumber(ARGV[a + 7])
  row.need = tonumber(ARGV[a + 6])
  local flat, fields = redis.call('HGETALL', key), {}
  for f = 1, #flat, 2 do fields[flat[f]] = flat[f + 1] end
  row.level, row.at = tonumber(fields.l or '0'), tonumber(fields.t or '0')
  if measure == 'minute' then
    if now > row.at then
      row.level = math.max(0, row.level - (now - row.at) * row.value / 60000000)
      row.at = now
    end
  elseif measure == 'day' then
    if today > row.at then row.level, row.at = 0, today end
  elseif measure == 'budget' then
    local version = tonumber(fields.n or '-1')
    if version > row.version then row.value, row.version = tonumber(fields.v), version end
  end
  row.others = 0
  for field, held in pairs(fields) do
    local name = string.match(field, '^h:(.+)$')
    if name and name ~= holder then
      held = tonumber(held)
      local believed = tonumber(fields['e:' .. name] or '0') + (measure == 'budget' and 86400000000 or 0)
      if believed < now then
        if measure == 'minute' or measure == 'day' then row.level = row.level + held end
        redis.call('HDEL', key, field, 'e:' .. name)
      else
        row.others = row.others + held
      end
    end
  end
  row.mine = mine >= 0 and mine or tonumber(fields['h:' .. holder] or '0')
  row.level = row.level + used
  row.mine = math.max(0, row.mine - used - back)
  local over = row.level + row.others + row.mine + row.need - row.value
  if row.need > 0 and over > 0 then
    local refusal = {index = i, budget = measure == 'budget', wait = -1}
    refusal.left = math.max(0, math.floor(row.value - row.level - row.others - row.mine))
    if not refusal.budget and row.need <= row.value then
      if measure == 'minute' then refusal.wait = math.ceil(over * 60000000 / row.value)
      elseif measure == 'day' then refusal.wait = (today + 1) * 86400000000 - now
      else refusal.wait = 1000000 end
    end
    if later(worst, refusal) then worst = refusal end
  end
  rows[i] = row
end

local out = worst and {'0', worst.index, worst.left, worst.wait} or {'1'}
local keep = {minute = 600, day = 172800, concurrent = 3600, budget = 3456000}
for _, row in ipairs(rows) do
  local units = 0
  if not worst and row.need > 0 then
    units = row.need
    local left = math.floor(row.value - row.level - row.others - row.mine - units)
    if left > 64 * holders * math.max(units, 1) then units = units + math.floor(left / (16 * holders)) end
  end
  row.mine = row.mine + units
  redis.call('HSET', row.key, 'l', string.format('%.17g', row.level), 't', string.format('%.0f', row.at),
    'v', string.format('%.0f', row.value), 'n', string.format('%.0f', row.version),
    'h:' .. holder, string.format('%.0f', row.mine), 'e:' .. holder, string.format('%.0f', now + belief))
  redis.call('EXPIRE', row.key, keep[row.measure])
  out[#out + 1] = string.format('%.0f', units)
  out[#out + 1] = string.format('%.6f', row.level)
  out[#out + 1] = string.format('%.0f', row.others + row.mine)
end
return table.concat(out, ' ')
