"""Numbers about models and programs, without running them."""
