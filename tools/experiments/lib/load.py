"""Load on an OpenAI-compatible endpoint, from one asyncio loop, standard library only.

Open loop: requests start at their recorded times whether or not earlier ones have ended, so a slow system shows queueing.
Closed loop: a fixed number of clients, each sending its next request when the last has ended, so a system shows its capacity.
"""
import asyncio
import json
import time


class Result:
    """One request. Times are seconds on the run's clock; `status` is 0 when no HTTP reply came."""

    def __init__(self, index, due):
        self.index, self.due = index, due
        self.sent = self.first = self.done = None
        self.tokens = 0
        self.status = 0
        self.error = None

    @property
    def ok(self):
        return self.error is None and self.status == 200

    @property
    def ttft(self):
        """From the due time, so that waiting for a connection counts."""
        return self.first - self.due if self.first is not None else None

    @property
    def latency(self):
        return self.done - self.due if self.done is not None else None


async def _events(reader):
    """The data lines of a chunked or plain server-sent event stream whose headers were read."""
    while True:
        line = await reader.readline()
        if not line:
            return
        if line.startswith(b"data: "):
            yield line[6:].strip()


async def _request(host, port, model, item, result, clock, timeout):
    body = {"model": model, "messages": item["messages"], "max_tokens": item["max_tokens"], "seed": item["seed"],
            "temperature": 0.7, "top_p": 0.9, "stream": True, "stream_options": {"include_usage": True}}
    if item.get("ignore_eos"):
        body["ignore_eos"] = True
    data = json.dumps(body, ensure_ascii=False).encode()
    result.sent = clock()
    writer = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\n"
                         b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (host.encode(), port, len(data)) + data)
            await writer.drain()
            status = await reader.readline()
            if not status.startswith(b"HTTP/"):
                raise ConnectionError("connection closed before a reply")
            result.status = int(status.split()[1])
            while (await reader.readline()).strip():
                pass
            if result.status != 200:
                result.error = (await reader.read(300)).decode(errors="replace")
                return
            ended = False
            async for event in _events(reader):
                if event == b"[DONE]":
                    ended = True
                    break
                message = json.loads(event)
                if "error" in message:
                    result.error = message["error"]["message"]
                    continue
                if result.first is None and any(c["delta"].get("content") for c in message["choices"]):
                    result.first = clock()
                if message.get("usage"):
                    result.tokens = message["usage"]["completion_tokens"]
            if not ended and result.error is None:
                result.error = "the stream ended without [DONE]"
    except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
        result.error = result.error or f"{type(error).__name__}: {error}"
    finally:
        result.done = clock()
        if writer is not None:
            writer.close()


async def _open_loop(host, port, model, trace, rate, timeout, events):
    start = time.monotonic()
    clock = lambda: time.monotonic() - start
    results, tasks = [], []
    for when, action in events:
        tasks.append(asyncio.create_task(_at(when, clock, action)))
    for i, item in enumerate(trace):
        due = item["at"] / rate
        await asyncio.sleep(max(0.0, due - clock()))
        result = Result(i, due)
        results.append(result)
        tasks.append(asyncio.create_task(_request(host, port, model, item, result, clock, timeout)))
    await asyncio.gather(*tasks)
    return results


async def _at(when, clock, action):
    await asyncio.sleep(max(0.0, when - clock()))
    await asyncio.to_thread(action)


async def _closed_loop(host, port, model, trace, clients, timeout):
    start = time.monotonic()
    clock = lambda: time.monotonic() - start
    results, waiting = [], iter(enumerate(trace))

    async def client():
        for i, item in waiting:
            result = Result(i, clock())
            results.append(result)
            await _request(host, port, model, item, result, clock, timeout)

    await asyncio.gather(*(client() for _ in range(clients)))
    return results


def open_loop(host, port, model, trace, rate, timeout=120, events=()):
    """`rate`: mean arrivals a second. `events`: (seconds, function) pairs that happen meanwhile, such as a fault."""
    return asyncio.run(_open_loop(host, port, model, trace, rate, timeout, events))


def closed_loop(host, port, model, trace, clients, timeout=120):
    return asyncio.run(_closed_loop(host, port, model, trace, clients, timeout))


def percentile(values, p):
    """Nearest rank; None of nothing."""
    values = sorted(v for v in values if v is not None)
    return values[min(len(values) - 1, int(p / 100 * len(values)))] if values else None


def summary(results):
    """The figures of one run: throughput over the time from the first request due to the last reply."""
    good = [r for r in results if r.ok]
    span = max(r.done for r in results) - min(r.due for r in results)
    return {
        "requests": len(results), "failed": len(results) - len(good), "seconds": span,
        "requests_per_s": len(good) / span, "tokens_per_s": sum(r.tokens for r in good) / span,
        "ttft_p50": percentile([r.ttft for r in good], 50), "ttft_p99": percentile([r.ttft for r in good], 99),
        "latency_p50": percentile([r.latency for r in good], 50), "latency_p99": percentile([r.latency for r in good], 99),
    }
