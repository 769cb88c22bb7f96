"""Feature stores: what an encoder has made of a scene, kept for any words that come later."""
