package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/microvm"
)

// found is what a probe found. It is kept in a file, since a guest was booted for it.
type found struct {
	Key     string `json:"key"` // of what it depends on; another makes a new probe
	Binary  string `json:"binary"`
	Version string `json:"version"`
	Build   string `json:"build"`
	Accel   string `json:"accel"`
	TSCKHz  int    `json:"tsc_khz"`
	Why     string `json:"why"`
}

// probe holds the result for an Engine.
type probe struct {
	mu   sync.Mutex
	done bool  // guarded by mu
	is   found // guarded by mu
}

// Probe says how VMs run here.
func (e *Engine) Probe(ctx context.Context) (microvm.Capabilities, error) {
	f, err := e.probed(ctx)
	if err != nil {
		return microvm.Capabilities{Accel: "none", Why: err.Error()}, err
	}
	c := microvm.Capabilities{Accel: f.Accel, Version: f.Version, Build: f.Build, Snapshots: true, Why: f.Why}
	// Beside the guest's memory: heap, libraries' private pages, and for TCG the translated code.
	c.OverheadMiB = 48
	if f.Accel == accelTCG {
		c.OverheadMiB = 128
	}
	return c, nil
}

// probed returns the result, of this Engine, of the file, or of a probe now.
func (e *Engine) probed(ctx context.Context) (found, error) {
	e.found.mu.Lock()
	defer e.found.mu.Unlock()
	if e.found.done {
		return e.found.is, nil
	}
	f, err := e.identify(ctx)
	if err != nil {
		return found{}, fmt.Errorf("probe qemu: %w", err)
	}
	file := filepath.Join(e.cfg.Dir, "probe.json")
	if old, ok := readFound(file); ok && old.Key == f.Key {
		f = old
	} else {
		if err := e.pick(ctx, &f); err != nil {
			return found{}, fmt.Errorf("probe qemu: %w", err)
		}
		b, err := json.MarshalIndent(f, "", "\t")
		if err == nil {
			err = os.WriteFile(file, b, 0o600)
		}
		if err != nil {
			e.log.Warn("probe not kept", "err", err)
		}
	}
	e.found.done, e.found.is = true, f
	return f, nil
}

func readFound(file string) (found, bool) {
	var f found
	b, err := os.ReadFile(file)
	return f, err == nil && json.Unmarshal(b, &f) == nil
}

// identify finds the binary, and what a result depends on.
func (e *Engine) identify(ctx context.Context) (found, error) {
	path, err := exec.LookPath(e.cfg.Binary)
	if err != nil {
		return found{}, volant.Errorf(volant.ErrUnavailable, "%s is not installed", e.cfg.Binary).
			WithRemedy("run: apt-get install --no-install-recommends qemu-system-x86")
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return found{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return found{}, err
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return found{}, fmt.Errorf("%s --version: %w", path, err)
	}
	f := found{Binary: path, Version: version(string(out))}
	f.Build = digest(path, fmt.Sprint(fi.Size()), fi.ModTime().UTC().Format(time.RFC3339Nano), f.Version)
	sum := e.cfg.KernelSum
	if sum == "" && e.cfg.Kernel != "" {
		if sum, err = e.sums.of(microvm.Spec{Kernel: e.cfg.Kernel, Initrd: e.cfg.Initrd}); err != nil {
			return found{}, err
		}
	}
	f.Key = digest(f.Build, sum, e.host, e.cfg.Accel)
	return f, nil
}

// version is the number in "QEMU emulator version 7.2.22 (Debian …)".
func version(out string) string {
	fields := strings.Fields(out)
	if i := slices.Index(fields, "version"); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	return "unknown"
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(sum[:8])
}

// pick chooses the accelerator and completes f.
func (e *Engine) pick(ctx context.Context, f *found) error {
	khz, err := MeasureTSC(ctx)
	if err != nil {
		return err
	}
	f.TSCKHz = khz
	build := f.Build
	set := func(accel, why string) {
		f.Accel, f.Why, f.Build = accel, why, digest(build, shape(accel))
	}
	if e.cfg.Accel == accelTCG {
		set(accelTCG, "emulation (TCG), as configured")
		return nil
	}
	err = e.tryKVM(ctx, *f)
	switch {
	case err == nil:
		set(accelKVM, "KVM: a guest booted under it")
	case ctx.Err() != nil:
		return ctx.Err()
	case e.cfg.Accel == accelKVM:
		return volant.Errorf(volant.ErrUnavailable, "KVM is configured but cannot be used: %v", err).
			WithRemedy("set the accelerator to tcg, or mend KVM")
	default:
		set(accelTCG, fmt.Sprintf("emulation (TCG), since KVM cannot be used: %v", err))
	}
	return nil
}

// tryKVM says why guests do not run under KVM, or nil when one has booted.
func (e *Engine) tryKVM(ctx context.Context, f found) error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	dev.Close() //nolint:errcheck // only tried
	if e.cfg.Accel != accelKVM {
		if err := cpuHasVT(); err != nil {
			return err
		}
	}
	if e.cfg.Kernel == "" {
		return errors.New("there is no guest kernel yet to try it with")
	}
	f.Accel = accelKVM
	ctx, cancel := context.WithTimeout(ctx, e.cfg.CanaryTime)
	defer cancel()
	if err := e.canary(ctx, f); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("/dev/kvm is there, but a guest did not boot in %v", e.cfg.CanaryTime)
		}
		return fmt.Errorf("/dev/kvm is there, but a guest did not boot: %w", err)
	}
	return nil
}

// cpuHasVT looks for the processor's virtualization. Hosts that have /dev/kvm without it offer another
// interface under the same name, which stock kernels do not boot on.
func cpuHasVT() error {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		f := strings.Fields(flags)
		if slices.Contains(f, "vmx") || slices.Contains(f, "svm") {
			return nil
		}
		break
	}
	return errors.New("/dev/kvm is there, but the processor shows neither vmx nor svm")
}

// canary boots a guest and waits for its agent to open its port. What it says is package guest's.
func (e *Engine) canary(ctx context.Context, f found) error {
	spec := microvm.Spec{
		ID: "probe", VCPUs: 1, MemoryMiB: 256,
		Kernel: e.cfg.Kernel, Initrd: e.cfg.Initrd, KernelSum: e.cfg.KernelSum,
	}
	// One that an earlier server left when it was killed.
	if _, err := e.Sweep(ctx, func(id string) bool { return id != spec.ID }); err != nil {
		return err
	}
	v, err := e.createOn(ctx, f, spec)
	if err != nil {
		return err
	}
	if err = v.Resume(ctx); err == nil {
		select {
		case <-v.opened:
		case <-v.done:
			err = fmt.Errorf("it ended: %q", strings.TrimSpace(v.Exit().Log))
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return errors.Join(err, v.discard(clean))
}
