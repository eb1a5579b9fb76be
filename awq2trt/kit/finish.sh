#!/bin/sh
# Makes model.engine out of this kit, on the Jetson that the kit is for. Downloads nothing; asks for no root.
#
# Everything about the kit is in kit.conf beside this file, everything about an engine in its .state beside it: of a model
# that sees there are three, and model.engine, the decoder's, comes last.
# AWQ2TRT_TRTEXEC names a trtexec that is not at its usual place. AWQ2TRT_ROOT is put before the paths of the system's
# files (/etc/nv_tegra_release, /proc/...), for tests.
set -u
LC_ALL=C
export LC_ALL

usage() {
    cat <<'TEXT'
usage: ./finish.sh [--rebuild] [--compile] [--force] [--check]
  --rebuild   build again, although model.engine is there
  --compile   compile the plugin library here, for a kit that carries its sources
  --force     build although memory seems too small
  --check     afterwards, run the engine on the kit's golden inputs and compare

Exit codes: 0 done, or nothing to do; 2 wrong option; 10 a file of the kit was changed; 11 one is missing;
12 another CPU; 13 another JetPack; 14 TensorRT too old; 15 another GPU; 16 too little disk; 17 too little memory;
18 no trtexec; 19 folder not writable; 20 interrupted; 21 engine of another TensorRT; 22 engine changed;
23 plugin library not compiled; 24 compiling failed; 25 trtexec failed; 26 finish.sh runs already; 27 wrong answers.
TEXT
}

say() { printf '%s\n' "$*"; }

# fail CODE REASON FIX
fail() {
    printf 'error: %s\n  fix: %s\n' "$2" "$3" >&2
    exit "$1"
}

library=lib/libawq2trt_plugins.so
work=.finish
root=${AWQ2TRT_ROOT:-}
make_again='copy the kit again; it is made with: awq2trt build MODEL --target orin'

# --- What the kit says, and whether it is whole ---

check_files() {
    [ -f SHA256SUMS ] || fail 11 'SHA256SUMS is missing.' "$make_again"
    while read -r _ name; do
        [ -f "$name" ] || fail 11 "$name is missing." "$make_again"
    done <SHA256SUMS
    sums=whole
    failed=$(sha256sum --check --strict --quiet SHA256SUMS 2>/dev/null) || sums=damaged
    changed=$(say "$failed" | sed -n 's/: FAILED.*//p' | tr '\n' ' ')
    [ -z "$changed" ] || fail 10 "changed since the kit was made: ${changed% }." "$make_again"
    [ "$sums" = whole ] || fail 10 'SHA256SUMS is empty, or not as it was written.' "$make_again"
    grep -q '^[0-9a-f]*  kit\.conf$' SHA256SUMS || fail 10 'SHA256SUMS does not name kit.conf: it was cut.' "$make_again"
}

# A file that SHA256SUMS does not name has not been looked at; kit.conf, which has, knows how many there are.
check_sums() {
    names=$(wc -l <SHA256SUMS)
    [ "$names" -eq "$kit_files" ] ||
        fail 10 "SHA256SUMS names $names files, and this kit has $kit_files: it was cut." "$make_again"
}

hash_of() { sha256sum "$1" | cut -d ' ' -f 1; }

# --- The machine ---

check_cpu() {
    cpu=$(uname -m)
    [ "$cpu" = "$kit_cpu" ] ||
        fail 12 "this kit is for $kit_cpu ($kit_title), and this machine is $cpu." \
            "copy it to the $kit_title and run it there"
}

check_jetpack() {
    version=$(dpkg-query -W -f '${Version}' nvidia-jetpack 2>/dev/null) || version=
    major=${version%%.*}
    if [ -z "$major" ] && [ -r "$root/etc/nv_tegra_release" ]; then
        release=$(sed -n 's/^# R\([0-9]*\) .*/\1/p' "$root/etc/nv_tegra_release")
        # Jetson Linux 35 is of JetPack 5, 36 of JetPack 6, 38 and later of JetPack 7.
        case $release in
        35 | 36) major=$((release - 30)) ;;
        3[89] | [4-9]?) major=7 ;;
        esac
    fi
    [ "$major" = "$kit_jetpack_major" ] ||
        fail 13 \
            "this kit is for JetPack $kit_jetpack, and this machine has ${major:+JetPack }${major:-none that is known}." \
            "make the kit for it with --jetpack (7.2 or 6.2), or install JetPack $kit_jetpack here"
}

check_gpu() {
    capability=
    compatible=
    [ ! -r "$root/proc/device-tree/compatible" ] || compatible=$(tr '\0' ' ' <"$root/proc/device-tree/compatible")
    case $compatible in
    *nvidia,tegra234*) capability=8.7 ;;
    *nvidia,tegra194*) capability=7.2 ;;
    *nvidia,tegra264*) capability=11.0 ;;
    *) capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n 1p) ;;
    esac
    [ "$capability" = "$kit_capability" ] ||
        fail 15 "this kit is for compute capability $kit_capability ($kit_title), and this GPU has \
${capability:-none that is known}." \
            "use it on a $kit_title"
}

find_trtexec() {
    trtexec=${AWQ2TRT_TRTEXEC:-}
    if [ -z "$trtexec" ]; then
        trtexec=$(command -v trtexec) || trtexec=$root/usr/src/tensorrt/bin/trtexec
    fi
    [ -x "$trtexec" ] ||
        fail 18 "no trtexec: not on PATH, and not $trtexec." \
            'install it: sudo apt-get install libnvinfer-bin, or name it with AWQ2TRT_TRTEXEC'
}

# "10.16" and "10.3.0.30-1+cuda12.5" as trtexec counts: 101600, 100300.
version_number() { say "$1" | sed 's/[^0-9.].*//' | awk -F . '{ printf "%d", $1 * 10000 + $2 * 100 + $3 }'; }

version_name() { say "$(($1 / 10000)).$(($1 / 100 % 100)).$(($1 % 100))"; }

check_tensorrt() {
    tensorrt=$("$trtexec" --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9]\{5,6\}\)\].*/\1/p' | sed -n 1p)
    if [ -z "$tensorrt" ]; then
        package=$(dpkg-query -W -f '${Version}' libnvinfer-bin 2>/dev/null) || package=0
        tensorrt=$(version_number "$package")
    fi
    wanted=$(version_number "$kit_tensorrt")
    [ "$tensorrt" -ge "$wanted" ] ||
        fail 14 "this kit needs TensorRT $kit_tensorrt, and this machine has $(version_name "$tensorrt")." \
            "install JetPack $kit_jetpack, or make the kit for the one that is here with --jetpack"
}

# check_disk WHAT MIB
check_disk() {
    free=$(df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1024 }')
    [ "$free" -ge "$2" ] ||
        fail 16 "$1 needs $2 MiB of disk, and $free MiB are free here." \
            'free some space, or copy the kit to a larger disk'
}

check_memory() {
    available=$(awk '/^(MemAvailable|SwapFree):/ { sum += $2 } END { printf "%d", sum / 1024 }' "$root/proc/meminfo")
    [ "$available" -ge "$kit_build_mib" ] || [ "$force" = yes ] ||
        fail 17 "building needs about $kit_build_mib MiB of memory, and $available MiB are free, swap included." \
            "close other programs (sudo systemctl isolate multi-user.target stops the desktop), or add swap: \
sudo fallocate -l $((kit_build_mib - available + 1024))M /swapfile && sudo chmod 600 /swapfile && \
sudo mkswap /swapfile && sudo swapon /swapfile; or try with --force"
}

# --- One finish.sh at a time; what an interrupted one left is removed ---

enter() {
    # The folder gets its name with the number of its owner in it, in one step that fails where one is there already.
    mine=$work.$$
    rm -rf "$mine"
    { mkdir "$mine" && say $$ >"$mine/shell"; } 2>/dev/null ||
        fail 19 "cannot write to $(pwd)." 'copy the kit to a folder that you may write to'
    tries=0
    until mv -T "$mine" "$work" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail 19 "cannot rename folders in $(pwd)." 'copy the kit to a folder on a local disk'
        if running "$work"; then
            rm -rf "$mine"
            fail 26 "finish.sh runs already in this folder (process $(cat "$work/shell" 2>/dev/null))." 'wait for it'
        fi
        # Whoever moves it away removes it: of several that find the same rests, one does, and the others look again.
        if mv -T "$work" "$mine.old" 2>/dev/null; then
            if running "$mine.old"; then
                mv -T "$mine.old" "$work"
                continue
            fi
            say 'removing what an interrupted run left'
            rm -rf "$mine.old"
            rm -f ./*.engine.partial "$library.partial"
        fi
    done
    trap leave EXIT
    trap interrupted HUP INT TERM
}

# running FOLDER: whether a process that is named in it is there. By its name too: after a restart the number may be
# another process's.
running() {
    for owner in "$1"/shell "$1"/trtexec; do
        if [ -s "$owner" ] && grep -aqse finish.sh -e trtexec "/proc/$(cat "$owner")/cmdline"; then
            return 0
        fi
    done
    return 1
}

leave() {
    rm -rf "$work"
    rm -f ./*.engine.partial "$library.partial"
}

interrupted() {
    trap '' HUP INT TERM
    [ ! -s "$work/trtexec" ] || kill "$(cat "$work/trtexec")" 2>/dev/null
    wait
    fail 20 'interrupted; the kit is as it was.' 'run ./finish.sh again'
}

# --- The plugin library, where the kit has only its sources ---

compile() {
    nvcc=$(command -v nvcc) || nvcc=$root/usr/local/cuda/bin/nvcc
    [ -x "$nvcc" ] || fail 24 "no nvcc: not on PATH, and not $nvcc." 'install it: sudo apt-get install nvidia-cuda-dev'
    headers=
    for folder in "$root/usr/include/$kit_cpu-linux-gnu" "$root/usr/include" "$root/usr/src/tensorrt/include"; do
        [ ! -f "$folder/NvInferRuntime.h" ] || headers=$folder
    done
    [ -n "$headers" ] ||
        fail 24 'no NvInferRuntime.h of TensorRT.' 'install it: sudo apt-get install libnvinfer-headers-dev'
    say "compiling the plugin library with $nvcc (a minute or two)"
    mkdir -p lib
    "$nvcc" -std=c++17 -O3 -shared --expt-relaxed-constexpr -cudart static -include src/version.h \
        -gencode "arch=compute_$kit_sm,code=sm_$kit_sm" -Xcompiler -fPIC,-fvisibility=hidden \
        -Xlinker --exclude-libs=ALL -I src -I "$headers" -o "$library.partial" \
        src/kernels/*/*.cpp src/kernels/*/*.cu src/library/*.cpp src/ops/*.cpp src/trt/*.cpp ||
        fail 24 'nvcc failed; what it said is above.' 'install all of JetPack: sudo apt-get install nvidia-jetpack'
    mv "$library.partial" "$library"
}

# --- The engines ---

# choose GRAPH: the graph that engine_is_current and build work on next; its name is that of its file.
choose() {
    graph=$1
    engine=$graph.engine
    state=$engine.state
    partial=$engine.partial
    log=build.log
    [ "$graph" = model ] || log=$graph-build.log
    profiles=
    eval "profiles=\$kit_profiles_$graph"
}

# Says whether the engine that is there can stay: nothing to do, 1 to build.
engine_is_current() {
    [ -f "$engine" ] && [ -f "$state" ] && [ "$rebuild" = no ] || return 1
    built_from='' built_by='' built_sha256=''
    while IFS='=' read -r key value; do
        case $key in
        kit) built_from=$value ;;
        tensorrt) built_by=$value ;;
        sha256) built_sha256=$value ;;
        esac
    done <"$state"
    if [ "$built_from" != "$kit_id" ]; then
        say "$engine was built from an earlier kit"
        return 1
    fi
    [ "$built_by" = "$tensorrt" ] ||
        fail 21 "$engine was built by TensorRT $(version_name "${built_by:-0}"), and this machine has \
$(version_name "$tensorrt"), which cannot run it." 'build it again: ./finish.sh --rebuild'
    [ "$(hash_of "$engine")" = "$built_sha256" ] ||
        fail 22 "$engine is not what finish.sh built: it was changed since." 'build it again: ./finish.sh --rebuild'
}

# Runs trtexec so that a signal to this script ends it too; its output is shown and kept in $1.
run_trtexec() {
    log=$1
    shift
    {
        "$trtexec" "$@" 2>&1 &
        say $! >"$work/trtexec"
        wait $!
        say $? >"$work/status"
    } 2>/dev/null | tee "$log" & # what the shell says of a killed child is no news
    wait $!
    [ "$(cat "$work/status")" = 0 ]
}

build() {
    say "building $engine with TensorRT $(version_name "$tensorrt") (some minutes; all it says is in $log)"
    set -- --onnx="$graph.onnx" --saveEngine="$partial" --skipInference --stronglyTyped
    case " $kit_graphs_with_operators " in
    *" $graph "*)
        set -- "$@" --preview=+aliasedPluginIO1003 --dynamicPlugins="$library" --setPluginsToSerialize="$library"
        ;;
    esac
    # shellcheck disable=SC2086 # options of several words, none of which has a space in it
    run_trtexec "$log" "$@" $profiles --memPoolSize="workspace:${kit_workspace_mib}M" --timingCacheFile=timing.cache ||
        fail 25 "trtexec failed with exit code $(cat "$work/status"): $(grep -m 1 '\[E\]' "$log")" \
            "read $log; with too little memory Linux ends trtexec with code 137: close programs or add swap"
    [ -s "$partial" ] || fail 25 'trtexec ended without an engine.' "read $log"
    sha256=$(hash_of "$partial")
    rm -f "$state"
    mv "$partial" "$engine"
    printf 'kit=%s\ntensorrt=%s\nsha256=%s\n' "$kit_id" "$tensorrt" "$sha256" >"$state.partial"
    mv "$state.partial" "$state"
    say "$(pwd)/$engine: $(wc -c <"$engine") bytes, sha256 $sha256"
}

# --- Whether the engine says what it must ---

# The 16-bit floats of a file, one a line: $1 is the number of bits of their fraction, 10 for float16, 7 for bfloat16.
decode_half() {
    od -An -v -tu2 "$2" | tr -s ' ' '\n' | awk -v bits="$1" '
        BEGIN { exponents = 2 ^ (15 - bits); fractions = 2 ^ bits; bias = exponents / 2 - 1 }
        NF {
            exponent = int($1 / fractions) % exponents; fraction = $1 % fractions / fractions
            if (exponent == exponents - 1) print "nan"
            else printf "%.9g\n", ($1 < 32768 ? 1 : -1) * \
                (exponent ? (1 + fraction) * 2 ^ (exponent - bias) : fraction * 2 ^ (1 - bias))
        }'
}

# Norm of the difference over the norm of what was expected around its mean, of two columns: got, expected.
relative_error() {
    awk '
        $1 == "nan" || NF != 2 { broken = 1 }
        { difference += ($1 - $2) ^ 2; sum += $2; squares += $2 ^ 2; count += 1 }
        END {
            spread = squares - sum ^ 2 / (count ? count : 1)
            if (broken || spread <= 0) print "nan"; else printf "%.6f\n", sqrt(difference / spread)
        }'
}

# check_answer NAME ENGINE SHAPES INPUTS OUTPUT EXPECTED DECODE BITS TOLERANCE: one call of an engine, held to what must
# come out, of which DECODE makes numbers. No SHAPES for an engine whose inputs are of fixed ones.
check_answer() {
    rm -f "$work"/*.raw
    # From within $work, where trtexec writes what goes in and comes out. It fills the cache with random numbers, which a
    # conversation that begins does not see.
    (
        cd "$work" || exit 1
        "$trtexec" --loadEngine="$folder/$2" ${3:+"--shapes=$3"} --iterations=1 --duration=0 --warmUp=0 \
            --loadInputs="$4" --dumpRawBindingsToFile >"$folder/check.log" 2>&1
    ) || fail 25 "trtexec cannot run the engine: $(grep -m 1 '\[E\]' check.log)" 'read check.log'
    decode_half "$8" "$work/$5".output.*.raw >"$work/got"
    $7 "$6" >"$work/expected"
    error=$(paste "$work/got" "$work/expected" | relative_error)
    say "$1: relative error of the $5 $error, allowed $9"
    awk -v got="$error" -v allowed="$9" 'BEGIN { exit !(got != "nan" && got + 0 <= allowed + 0) }' ||
        fail 27 "the engine's answers are wrong: $1 differs by $error, $9 is allowed." \
            'report it, with build.log and check.log'
}

decode_float() { od -An -v -tf4 "$1" | tr -s ' ' '\n' | sed '/^$/d'; }

# loaded PREFIX NAME...: what trtexec loads inputs from, each from the file PREFIX.NAME.bin.
loaded() {
    prefix=$1
    shift
    separator=
    for each; do
        printf '%s%s:%s.%s.bin' "$separator" "$each" "$prefix" "$each"
        separator=,
    done
}

check_answers() {
    check_disk 'checking the answers' "$kit_check_mib" # trtexec writes the cache to disk, too
    folder=$(pwd)
    # shellcheck disable=SC2086 # several names
    tables=$(loaded "$folder/golden" $kit_golden_tables)
    case " $kit_graphs " in
    *' vision '*)
        golden=$folder/golden.vision
        # shellcheck disable=SC2086 # several names
        check_answer vision vision.engine "$kit_golden_vision_shapes" "$(loaded "$golden" $kit_golden_vision_inputs)" \
            image_embeddings "$golden.image_embeddings.bin" decode_float 10 "$kit_golden_vision_tolerance"
        ;;
    esac
    for call in $kit_golden_calls; do
        golden=$folder/golden.$call
        tokens=$(($(wc -c <"$golden.input_ids.bin") / 8))
        case " $kit_graphs " in
        *' embedding '*)
            check_answer "$call" embedding.engine "input_ids:1x$tokens" "input_ids:$golden.input_ids.bin" \
                inputs_embeds "$golden.inputs_embeds.bin" "decode_half $kit_fraction_bits" "$kit_fraction_bits" \
                "$kit_golden_tolerance"
            ;;
        esac
        # shellcheck disable=SC2086 # several names
        check_answer "$call" model.engine "$(printf '%s' "$kit_new_tokens_shapes" | sed "s/TOKENS/$tokens/g")" \
            "$(loaded "$golden" $kit_new_tokens cache_position)${tables:+,$tables}" \
            logits "$golden.logits.bin" decode_float "$kit_fraction_bits" "$kit_golden_tolerance"
    done
    for each in $kit_graphs; do
        say "$each.engine answers as it must"
    done
}

rebuild=no compile=no force=no check=no
for option; do
    case $option in
    --rebuild) rebuild=yes ;;
    --compile) compile=yes ;;
    --force) force=yes ;;
    --check) check=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
done

cd "$(dirname "$0")" || exit 1
check_files
# shellcheck source=kit.conf
. ./kit.conf
check_sums
kit_id=$(hash_of SHA256SUMS)
check_cpu
check_jetpack
check_gpu
find_trtexec
check_tensorrt
entered=no
for each in $kit_graphs; do
    choose "$each"
    if engine_is_current; then
        say "$engine is current"
        continue
    fi
    if [ $entered = no ]; then
        enter
        entered=yes
        if [ "$kit_plugin" = sources ] && [ "$compile" = yes ]; then
            compile
        fi
        [ -f "$library" ] ||
            fail 23 "this kit carries the plugin library's sources, and they are not compiled." \
                'compile them here, with the nvcc of JetPack: ./finish.sh --compile'
        check_disk 'the engine' "$kit_disk_mib"
        check_memory
    fi
    build
done
if [ "$check" = yes ]; then
    [ $entered = yes ] || enter
    check_answers
fi
