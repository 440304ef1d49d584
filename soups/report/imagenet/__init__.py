"""Report soups on ImageNet, each number beside the published one."""
