# The image of a lock as derivations: each file and tree that cpack.lock names is a fixed-output derivation by its hash,
# each layer a derivation that runs cpack-build's own layer functions (tool/), the image an OCI layout of all of them.
# cpack.lock says what, plan.json in which layers, host.json with which Python where nixpkgs is not given.
{
  # nixpkgs, whose Python then builds; without it this machine's does, which a sandbox would hide.
  pkgs ? null,
  # An interpreter with cpack-build's dependencies, and a PATH with git.
  python ? null,
  path ? null,
  # Which of the lock's, where it has several: "linux/amd64".
  platform ? null,
}:
let
  inherit (builtins)
    attrNames concatStringsSep elemAt filter fromJSON fromTOML genList hashFile hashString head isNull length listToAttrs
    map match pathExists readFile removeAttrs stringLength substring toJSON;

  # -- the documents ------------------------------------------------------------------------------------------------

  plan =
    let found = fromJSON (readFile ./plan.json); in
    if hashFile "sha256" ./cpack.lock == found.lock then found
    else throw "plan.json was made for another cpack.lock: write both again with `cpack-build image PACK --backend nix --print DIR`";
  file = fromJSON (readFile ./cpack.lock);
  platforms = if file ? platforms then attrNames file.platforms else [ file.platform ];
  chosen =
    if platform != null then platform
    else if length platforms == 1 then head platforms
    else throw "cpack.lock is for ${concatStringsSep " and " platforms}: name one with --argstr platform";
  lock = if file ? platforms then removeAttrs file [ "platforms" ] // file.platforms.${chosen} else file;
  system = { "linux/amd64" = "x86_64-linux"; "linux/arm64" = "aarch64-linux"; }.${chosen};
  planned = plan.platforms.${chosen};
  isCompiled = (lock.bytecode or "none") == "compiled";

  # -- the builder --------------------------------------------------------------------------------------------------

  host = fromJSON (readFile ./host.json);
  withDependencies = pkgs.python3.withPackages (all: with all; [
    build click cyclonedx-python-lib installer isal packageurl-python packaging pydantic pyelftools python-debian pyyaml
    requests rich urllib3 zstandard
  ]);
  program =
    if python != null then python
    else if pkgs != null then "${withDependencies}/bin/python3"
    else host.python;
  programs =
    if path != null then path
    else if pkgs != null then "${pkgs.git}/bin:${pkgs.coreutils}/bin"
    else host.path;

  # One run of cpack_build.backends.nix.derive, told by an order what to make.
  run = name: order: more: derivation ({
    name = "cpack-${safe name}";
    inherit system;
    # Nix calls a builder by its bare name, by which a Python does not find the environment that it is of.
    builder = "/bin/sh";
    args = [ "-c" "exec \"$program\" -s -m cpack_build.backends.nix.derive" ];
    inherit program;
    order = toJSON order;
    passAsFile = [ "order" ];
    PATH = programs;
    PYTHONDONTWRITEBYTECODE = "1";
    PYTHONPATH = "${./tool}";
  } // more);

  # Names in the Nix store have few letters, and not many of them.
  safe = text: concatStringsSep "" (map
    (letter: if match "[A-Za-z0-9+._-]" letter != null then letter else "-")
    (genList (at: substring at 1 text) (if stringLength text > 160 then 160 else stringLength text)));

  # -- what the lock names, by hash ---------------------------------------------------------------------------------

  # What a fetch may see of the environment; its hash is fixed, so nothing else can come of it.
  impureEnvVars = [
    "http_proxy" "https_proxy" "ftp_proxy" "all_proxy" "no_proxy" "HTTPS_PROXY" "HTTP_PROXY" "NO_PROXY" "SSL_CERT_FILE"
    "CPACK_HOME" "CPACK_STORES"
  ];
  # With an address, Nix's own downloader; else cpack-build, from its store or wherever it finds such things.
  fetched = { name, sha256, url ? null, size ? null, ... }@item:
    if url != null && match "(https?|file)://.*" url != null
    then import <nix/fetchurl.nix> { name = "cpack-${safe name}"; inherit sha256 url; }
    else run name { kind = "file"; inherit item; } {
      outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = sha256; inherit impureEnvVars;
    };

  debFile = deb: fetched { name = "${deb.name}_${deb.version}.deb"; inherit (deb) sha256 size url; };

  wheelsOf = environment:
    if hashString "sha256" environment.pylock != environment.pylock_sha256
    then throw "cpack.lock was tampered with: its pylock has another hash than it says"
    else map
      (package: let wheel = head package.wheels; in {
        inherit (package) name version;
        filename = wheel.name;
        url = wheel.url or null;
        sha256 = wheel.hashes.sha256;
        size = wheel.size or null;
      })
      (fromTOML environment.pylock).packages;
  serviceWheels = wheelsOf lock.service;
  comfyuiWheels = wheelsOf lock.python;
  wheelFile = wheel: fetched { name = wheel.filename; inherit (wheel) sha256 size url; };

  interpreterDebs = lock.interpreter.packages or [ ];
  isArchive = lock.interpreter.kind == "archive";
  archiveFile = fetched {
    name = "python-${lock.interpreter.version}-archive";
    inherit (lock.interpreter) sha256 size url;
  };
  registryFile = pin: fetched { name = "${pin.name}-${pin.version}-archive"; inherit (pin) sha256 size url; };

  # The layers of a base image are named by its manifest, whose digest is in the lock.
  isScratch = lock.base.kind == "scratch";
  baseDocuments = ./base + "/${builtins.replaceStrings [ "/" ] [ "-" ] chosen}";
  baseManifest =
    let file = baseDocuments + "/manifest.json"; in
    if "sha256:${hashFile "sha256" file}" == lock.base.digest then fromJSON (readFile file)
    else throw "base/ has another base image than cpack.lock: write both again with `cpack-build image PACK --backend nix --print DIR`";
  baseLayers = map (layer: layer // { sha256 = builtins.replaceStrings [ "sha256:" ] [ "" ] layer.digest; }) baseManifest.layers;
  baseLayerFile = layer: run "base-layer-${layer.sha256}"
    { kind = "base-layer"; pin = lock.base; layer = { media_type = layer.mediaType; inherit (layer) digest size; }; }
    { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = layer.sha256; inherit impureEnvVars; };
  base = run "base"
    { kind = "base"; pin = lock.base; documents = "${baseDocuments}"; files = filesOf baseLayerFile baseLayers; }
    { };

  # A model's addresses want what cpack-build knows of hubs.
  modelFile = model: run "model-${model.sha256}" { kind = "model-file"; inherit model; } {
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = model.sha256; inherit impureEnvVars;
  };

  # A tree by its NAR hash, which plan.json has for the lock's own: the commit, the archive or the pack's files, unpacked.
  trees = [ lock.comfyui ] ++ lock.nodes ++ (lock.registry_nodes or [ ]) ++ (lock.local_nodes or [ ]);
  # what install.py left is in cpack-build's own store, whatever the node was before
  isRegistered = pin: pin ? sha256 && !(pin ? installed);
  isCaptured = pin: !(pin ? installed) && (pin ? patch_sha256 || !(pin ? commit || isRegistered pin));
  treeFolder = pin: run "tree-${pin.name}"
    {
      kind = "tree";
      inherit pin;
      archive = if isRegistered pin then "${registryFile pin}" else null;
      captured = if isCaptured pin then "${./captured}" else null;
    }
    {
      outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputHash = plan.trees.${pin.tree_sha256};
      inherit impureEnvVars;
    };

  # -- the layers ---------------------------------------------------------------------------------------------------

  filesOf = file: listToAttrs' (map (item: { name = item.sha256; value = "${file item}"; }));
  listToAttrs' = make: items: listToAttrs (make items);
  debsOrder = debs: { inherit debs; files = filesOf debFile debs; };
  wheelsOrder = wheels: { inherit wheels; files = filesOf wheelFile wheels; };
  where = { python = { inherit (lock.interpreter) version path; }; runtime = if isCompiled then "${runtime}" else null; };

  # The image's own Python, laid out to be started here, which compiles bytecode.
  runtime = run "runtime" (
    { kind = "runtime"; inherit (lock) interpreter; } // (
      if isArchive then { files.${lock.interpreter.sha256} = "${archiveFile}"; }
      else if lock.interpreter.kind == "base" then { base = "${base}"; }
      else debsOrder (lock.system ++ interpreterDebs))
  ) { };
  loaderCache = run "loader-cache"
    ({ kind = "loader-cache"; } // debsOrder (lock.system ++ interpreterDebs) // { own = map (deb: deb.sha256) interpreterDebs; })
    { };

  byHash = hashes: filter (wheel: hashes ? ${wheel.sha256});
  hashSet = hashes: listToAttrs (map (sha256: { name = sha256; value = true; }) hashes);
  models = listToAttrs (map (model: { name = model.sha256; value = model; }) lock.models);

  makers = {
    system = entry: { kind = "system"; isRoot = isScratch; } // debsOrder lock.system;
    interpreter = entry:
      if isArchive
      then { kind = "interpreter"; inherit (lock) interpreter; files.${lock.interpreter.sha256} = "${archiveFile}"; }
      else { kind = "interpreter"; } // where // debsOrder interpreterDebs;
    service = entry: { kind = "service"; } // where // wheelsOrder serviceWheels;
    wheel = entry: { kind = "wheel"; } // where // wheelsOrder (byHash (hashSet entry.sha256) comfyuiWheels);
    wheels = entry: { kind = "wheels"; } // where // wheelsOrder (byHash (hashSet entry.sha256) comfyuiWheels);
    comfyui = entry: { kind = "comfyui"; pin = lock.comfyui; tree = "${treeFolder lock.comfyui}"; } // where;
    node = entry:
      let pin = head (filter (pin: pin.name == entry.name) (builtins.tail trees)); in
      { kind = "node"; inherit pin; tree = "${treeFolder pin}"; } // where;
    model = entry: {
      kind = "model"; model = models.${entry.sha256}; files.${entry.sha256} = "${modelFile models.${entry.sha256}}";
    };
    models = entry: {
      kind = "models";
      inherit (entry) number;
      models = map (sha256: models.${sha256}) entry.sha256;
      files = filesOf modelFile (map (sha256: models.${sha256}) entry.sha256);
    };
  };
  layer = entry: run "layer-${entry.kind}-${entry.name}" (makers.${entry.kind} entry) { };
  layers = map (entry: { inherit entry; made = layer entry; }) planned.layers;

  # -- the image ----------------------------------------------------------------------------------------------------

  # In its layout the layers are links to the derivations' own. A model's is left out unless *withModels*: its digest is
  # in the lock, and whoever gives the image away streams it from where the model lies (image-layout.md: a layout may
  # leave blobs to an external store).
  imageWith = withModels: run "image"
    {
      kind = "image";
      platform = chosen;
      lock = "${./cpack.lock}";
      documents = "${./documents}";
      loaderCache = if isScratch then "${loaderCache}" else null;
      base = if isScratch then null else "${base}";
      isWhole = withModels;
      layers = map
        ({ entry, made }: if entry.kind == "model" && !withModels then { model = models.${entry.sha256}; } else { layer = "${made}"; })
        layers;
    }
    { };
  image = imageWith false;

  # What can be done with the image, as a program: `cpack-build deliver IMAGE …`.
  app = name: arguments: derivation {
    name = "cpack-${name}";
    inherit system;
    builder = "/bin/sh";
    args = [ "-c" "echo \"$text\" > $out; ${if pkgs != null then "${pkgs.coreutils}/bin/" else "/bin/"}chmod +x $out" ];
    text = ''
      #!/bin/sh
      PYTHONPATH=${./tool}''${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 exec '${program}' -s -m cpack_build deliver ${image} ${arguments} "$@"'';
  };

  sourceOf = made: { drv = builtins.unsafeDiscardStringContext made.drvPath; out = builtins.unsafeDiscardStringContext made.outPath; inherit (made) name; };
  sourcesOf = file: map (item: { id = item.sha256; } // sourceOf (file item));
in
# `nix-build` alone builds the image, and -A the rest.
image // {
  inherit image platforms;
  image-with-models = imageWith true;
  # Every blob read and compared with what it is called, every document with the lock.
  check = run "check" { kind = "check"; image = "${image}"; } { };
  push = app "push" "--push";
  load = app "load" "--output docker";
  archive = app "archive" "--archive";
  # What whoever drives Nix can put into its store, from bytes that are here already.
  sources = {
    files =
      sourcesOf debFile (lock.system ++ interpreterDebs)
      ++ sourcesOf wheelFile (serviceWheels ++ comfyuiWheels)
      ++ sourcesOf registryFile (filter isRegistered trees)
      ++ (if isScratch then [ ] else sourcesOf baseLayerFile baseLayers)
      ++ (if isArchive then [ ({ id = lock.interpreter.sha256; } // sourceOf archiveFile) ] else [ ]);
    trees = map (pin: { id = pin.tree_sha256; } // sourceOf (treeFolder pin)) trees;
  };
}
