"""Carry TCP connections over a link of long delay: ``python -m tests.slow_link PORT HOST TARGET SECONDS``.

Not every kernel can delay packets (netem). Each direction takes the seconds, whatever its bandwidth.
"""

import asyncio
import sys
from contextlib import suppress


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Write what is read, after a while."""
    sent: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    clock = asyncio.get_running_loop().time

    async def deliver() -> None:
        with suppress(ConnectionError):
            while True:
                due, data = await sent.get()
                await asyncio.sleep(due - clock())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    delivery = asyncio.create_task(deliver())
    data = b"."
    while data:
        try:
            data = await reader.read(65536)
        except ConnectionError:
            data = b""
        sent.put_nowait((clock() + seconds, data))
    await delivery


async def serve(port: int, host: str, target: int, seconds: float) -> None:
    """Accept connections to a port of this host, and carry them to a target."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, target)
        await asyncio.gather(carry(reader, far_writer, seconds), carry(far_reader, writer, seconds))

    async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
        print("listens", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
