-- wrk -s chat.lua URL -- BEFORE AFTER FIRST fresh|same: posts the text of BEFORE, a number, the text of AFTER.

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  local before, after, number = read(args[1]), read(args[2]), tonumber(args[3])
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  if args[4] == "fresh" then
    request = function()
      number = number + 1
      return wrk.format(nil, nil, nil, before .. string.format("%08d", number % 100000000) .. after)
    end
  else
    local same = wrk.format(nil, nil, nil, before .. "00000000" .. after)
    request = function() return same end
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "errors": %d, "us": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.duration,
    latency:percentile(50), latency:percentile(99)
  ))
end
