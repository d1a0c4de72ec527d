"""Drive the emulator with ccxt and print what it understood, as one JSON object. Runs in an environment of its own."""

import json
import sys
import time

import ccxt

URL, KEY, SECRET = sys.argv[1:4]
SYMBOL = "BTC/USDT:USDT"

exchange = ccxt.bybit({"apiKey": KEY, "secret": SECRET, "enableRateLimit": False, "timeout": 20_000})
exchange.urls["api"] = {name: URL for name in exchange.urls["api"]}
exchange.options["fetchMarkets"] = {"types": ["linear"]}
exchange.options["defaultType"] = "swap"
exchange.has["fetchCurrencies"] = False
exchange.session.trust_env = False

told = {"version": ccxt.__version__}


def error_of(call):
    """Return the name of the class that ccxt gives to a refusal."""
    try:
        call()
    except ccxt.BaseError as error:
        return type(error).__name__
    return ""


markets = exchange.load_markets()
market = markets[SYMBOL]
told["markets"] = sorted(markets)
told["market"] = {
    "swap": market["swap"],
    "linear": market["linear"],
    "settle": market["settle"],
    "amount_step": market["precision"]["amount"],
    "price_step": market["precision"]["price"],
    "min_amount": market["limits"]["amount"]["min"],
    "max_leverage": market["limits"]["leverage"]["max"],
    "active": market["active"],
}
told["server_time"] = exchange.fetch_time()
told["ticker"] = {k: exchange.fetch_ticker(SYMBOL)[k] for k in ("last", "bid", "ask", "markPrice", "indexPrice")}
told["ohlcv"] = exchange.fetch_ohlcv(SYMBOL, "2h", limit=5)
told["book"] = {side: exchange.fetch_order_book(SYMBOL, 5)[side] for side in ("bids", "asks")}
told["funding_rate"] = exchange.fetch_funding_rate(SYMBOL)["fundingRate"]
told["funding_history"] = len(exchange.fetch_funding_rate_history(SYMBOL, limit=3))
told["tiers"] = len(exchange.fetch_market_leverage_tiers(SYMBOL))
told["fee"] = {k: exchange.fetch_trading_fee(SYMBOL)[k] for k in ("taker", "maker")}
told["balance"] = exchange.fetch_balance()["USDT"]
exchange.set_leverage(7, SYMBOL)
told["same_leverage"] = error_of(lambda: exchange.set_leverage(7, SYMBOL))

last = told["ticker"]["last"]
entry = exchange.create_order(SYMBOL, "market", "buy", 0.05, params={"clientOrderId": "ccxt-entry-1"})
told["duplicate"] = error_of(
    lambda: exchange.create_order(SYMBOL, "market", "buy", 0.05, params={"clientOrderId": "ccxt-entry-1"})
)
told["too_dear"] = error_of(lambda: exchange.create_order(SYMBOL, "market", "buy", 400))
resting = exchange.create_order(SYMBOL, "limit", "buy", 0.01, last - 100, {"clientOrderId": "ccxt-rest-1"})
exchange.edit_order(resting["id"], SYMBOL, "limit", "buy", 0.02, last - 150)
told["open"] = [[o["id"], o["amount"], o["price"], o["status"]] for o in exchange.fetch_open_orders(SYMBOL)]
exchange.cancel_order(resting["id"], SYMBOL)
told["cancel_again"] = error_of(lambda: exchange.cancel_order(resting["id"], SYMBOL))
told["resting"] = resting["id"]
protected = exchange.create_order(
    SYMBOL,
    "limit",
    "buy",
    0.01,
    last - 200,
    {"postOnly": True, "stopLossPrice": None, "stopLoss": {"triggerPrice": last - 900}},
)
waiting = exchange.create_order(
    SYMBOL,
    "market",
    "sell",
    0.01,
    params={"triggerPrice": last - 500, "triggerDirection": "descending", "reduceOnly": True},
)
told["open_kinds"] = sorted(
    [o["info"]["stopOrderType"], o["timeInForce"], o["info"]["stopLoss"]] for o in exchange.fetch_open_orders(SYMBOL)
)
exchange.cancel_all_orders(SYMBOL)
told["left_open"] = len(exchange.fetch_open_orders(SYMBOL))
(position,) = exchange.fetch_positions([SYMBOL])
told["position"] = {k: position[k] for k in ("side", "contracts", "entryPrice", "leverage", "markPrice")}
told["trades"] = [
    [t["order"], t["side"], t["amount"], t["price"], t["fee"]["cost"], t["takerOrMaker"]]
    for t in exchange.fetch_my_trades(SYMBOL)
]
told["entry"] = entry["id"]
exchange.create_order(SYMBOL, "market", "sell", 0.05, params={"reduceOnly": True})
told["nothing_to_reduce"] = error_of(
    lambda: exchange.create_order(SYMBOL, "market", "sell", 0.05, params={"reduceOnly": True})
)
told["closed"] = [[o["id"], o["status"], o["filled"]] for o in exchange.fetch_closed_orders(SYMBOL)]
told["cancelled"] = [[o["id"], o["status"]] for o in exchange.fetch_canceled_orders(SYMBOL)]
told["ledger"] = [[row["type"], row["amount"]] for row in exchange.fetch_ledger("USDT")]
told["flat"] = exchange.fetch_positions([SYMBOL])[0]["contracts"]
told["final"] = exchange.fetch_balance()["USDT"]["total"]

exchange.secret = "another"
told["wrong_secret"] = error_of(lambda: exchange.fetch_balance())
exchange.secret = SECRET

begin, calls = time.perf_counter(), 100
for _ in range(calls):
    exchange.fetch_time()
told["calls_per_second"] = calls / (time.perf_counter() - begin)
sys.stdout.write(json.dumps(told))
