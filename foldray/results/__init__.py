"""What runs leave behind: metrics, result rows, hypotheses, and the page that shows them."""
