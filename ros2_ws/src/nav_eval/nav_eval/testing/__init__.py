"""What tests of recordings and of nodes share: a flight made by hand, and nodes as processes of their own."""
