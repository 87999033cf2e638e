# A long computation in two threads with numpy, which says after each round what it has come to. The words: the log, and how many
# rounds at most, and how many milliseconds to rest between them.
import sys, threading, time
import numpy

log = open(sys.argv[1], "a", buffering=1)
rounds, rest = int(sys.argv[2]), int(sys.argv[3]) / 1000
random = numpy.random.default_rng(4711)
state = {"matrix": random.integers(0, 1000, (60, 60), dtype=numpy.int64), "waves": random.random(4096)}
both = threading.Barrier(2)


def waves():
    for _ in range(rounds):
        spectrum = numpy.fft.rfft(state["waves"])
        spectrum[1:] *= numpy.exp(1j * numpy.pi / 7)
        state["waves"] = numpy.fft.irfft(spectrum)
        both.wait()
        both.wait()


other = threading.Thread(target=waves, daemon=True)
other.start()
heap = []
for number in range(1, rounds + 1):
    state["matrix"] = state["matrix"] @ state["matrix"].T % 997
    both.wait()
    heap.append({"round": number, "text": str(number) * 50})
    assert heap[number // 2]["text"] == str(heap[number // 2]["round"]) * 50
    waves_now = numpy.float64(state["waves"].sum() + state["waves"][17]).hex()
    log.write(f"{number} {state['matrix'].sum()} {waves_now} {random.integers(1 << 60)}\n")
    both.wait()
    time.sleep(rest)
