"""What the routers of a trained model do: numbers, charts, pictures, a page."""
