"""The manual source of online and offline, alone (OFF-1, OFF-2); with a connection: test_network.py."""

from __future__ import annotations

from reconnect_fsm.network import ManualNetwork, NetworkSource


def test_a_subscriber_is_told_at_once_and_on_every_report() -> None:
    """`ManualNetwork.subscribe` reports what is known, then what is said, until the subscription ends."""
    heard: list[bool] = []
    network = ManualNetwork(online=False)
    end = network.subscribe(heard.append)
    network.set_online(True)
    assert network.online is True
    end()
    network.set_online(False)
    end()  # a second time: nothing
    assert heard == [False, True]
    assert network.online is False
    assert ManualNetwork().online is True
    assert isinstance(network, NetworkSource)


def test_one_source_serves_many() -> None:
    """Each subscription is its own, even of the same function, and may end while being told."""
    heard: list[bool] = []
    network = ManualNetwork()
    first, second = network.subscribe(heard.append), network.subscribe(heard.append)
    network.subscribe(lambda online: second())
    heard.clear()
    network.set_online(False)
    assert heard == [False]  # the first alone: subscribing the third ended the second
    first()
    network.set_online(True)
    assert heard == [False]
