"""Keys of streams."""

import jax

from plasticity.rng import Stream, key_for


def test_key_for_differs_by_seed_stream_and_count():
    """Would catch two uses that draw the same numbers."""
    keys = [
        jax.random.key_data(key_for(seed, stream, count)).tolist()
        for seed in (0, 1)
        for stream in Stream
        for count in (0, 1, 2)
    ]
    assert len({tuple(key) for key in keys}) == len(keys)


def test_stream_numbers_do_not_change():
    """Would catch a stream that is renumbered, which changes the runs of every seed."""
    assert [stream.value for stream in Stream] == list(range(22))
    assert (Stream.PARAMS, Stream.ROLLOUT, Stream.INTRINSIC_OPTIMIZER) == (0, 4, 17)
