{
  description = "The image of cpack.lock, by cpack-build";

  # With a nixpkgs the build needs no Python of this machine and runs in Nix's sandbox:
  # inputs.nixpkgs.url = "nixpkgs/nixos-unstable";

  outputs = inputs:
    let
      platforms = (import ./default.nix { platform = ""; }).platforms;
      made = platform:
        let plain = import ./default.nix { inherit platform; }; in
        if inputs ? nixpkgs
        then import ./default.nix { inherit platform; pkgs = inputs.nixpkgs.legacyPackages.${plain.system}; }
        else plain;
      each = what: builtins.listToAttrs (map
        (platform: let one = made platform; in { name = one.system; value = what one; })
        platforms);
      app = program: { type = "app"; program = "${program}"; };
    in
    {
      packages = each (one: { inherit (one) image image-with-models; default = one.image; });
      checks = each (one: { inherit (one) image check; });
      apps = each (one: { push = app one.push; load = app one.load; archive = app one.archive; });
    };
}
