"""Whole networks in virtual time."""

from neurons.adversaries import Copycat, FreeRider
from neurons.validator import Validator


def test_a_network(network, virtual):
    async def scenario():
        async with await network(["v", "a", "b", "c", "copycat", "freerider"]) as net:
            net.start("v", Validator)
            for name in "abc":
                net.start(name)
            net.start("copycat", Copycat)
            net.start("freerider", FreeRider)
            import time

            for w in range(10):
                t = time.time()
                await net.blocks(10)
                v = net.nodes["v"]
                print(
                    w,
                    round(time.time() - t, 2),
                    {n: (x.state.window, x.root()[:6], x._activity) for n, x in net.nodes.items()},
                    v.held_out_loss,
                )
            from protocol.gauntlet.receipts import Receipts

            for w in range(9):
                r = Receipts.parse(await net.bucket("v").get(net.keys.receipts(w), limit_bytes=10**7))
                print(w, r.held_out_loss_before, r.held_out_loss_after)
                for x in r.receipts:
                    j = x.judgement
                    print(
                        "   ",
                        x.uid,
                        x.reason,
                        x.contributed,
                        j
                        and (
                            round(j.gain, 5),
                            round(j.gain_error, 5),
                            round(j.first_order_gain, 5),
                            j.rank,
                            j.unique_work and round(j.unique_work, 2),
                        ),
                        round(x.after.rating, 2),
                        round(x.after.unique_work, 2),
                        round(x.after.final, 2),
                        round(x.weight, 2),
                        x.list_next,
                    )
            for n in await net.chain.neurons():
                print(n)

    virtual(scenario())
