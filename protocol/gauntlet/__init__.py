"""The Gauntlet (protocol §11, §14): checks, gains, ratings, lists, weights and the receipts that explain them."""
