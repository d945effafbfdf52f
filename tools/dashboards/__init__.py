"""The Grafana boards as typed values, and the JSON files that are made of them. `python -m tools.dashboards` writes."""
