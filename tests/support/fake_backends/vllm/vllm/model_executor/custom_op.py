op_registry_oot = {}
