"""Where a guest spends its time: recordings, and what is made of them."""
