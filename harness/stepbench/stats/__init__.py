"""What measured steps say: means, ratios with intervals, noise, and the staged rule."""
