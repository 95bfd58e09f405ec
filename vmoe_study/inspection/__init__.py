"""What routers of a trained model do: statistics, charts, pictures, page."""
