"""From a source to a resident model: fetching, converting, loading, leasing."""
