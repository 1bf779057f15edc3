"""What people see of a network: rollouts, images, sheets, meshes, videos."""
