// Only `canImport(Darwin)`.
