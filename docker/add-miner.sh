#!/bin/sh
# A miner of the network in /data/network: a wallet, if there is none of this name, and the keys of its bucket.
set -eu
[ -d "/data/network/wallets/$1" ] ||
  btcli wallet create --wallet "$1" --wallet-hotkey default --wallet-path /data/network/wallets --no-password >/dev/null
exec windrow miner --dir /data/network --wallet.name "$1" --config "/keys/$1.toml" --register
