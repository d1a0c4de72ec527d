def test_try(home, tools):
    B=1726790400000
    for n in (2,3,4,10,30,60,61,62,63,70):
        home.clock.set_ms(B+n*7200000+2000)
        home.pull(tools.TWO, bars=60 if n>4 else 12)
        f=home.forecast(tools.TWO, wait_s=0.0)
        s=f.of("lightgbm"); print(n, s.usable, s.details["known_share"], s.reason)
