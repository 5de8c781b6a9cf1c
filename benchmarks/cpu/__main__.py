"""Every CPU benchmark: `python -m benchmarks.cpu`; one alone is `python -m benchmarks.cpu.forward`."""

from benchmarks.cpu import backward, decode, first, forward

if __name__ == "__main__":
    forward.main([])
    backward.main([])
    decode.main([])
    first.main([])
