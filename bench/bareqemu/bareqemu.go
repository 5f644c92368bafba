package bareqemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm/qemu"
)

// Config of a Runner.
type Config struct {
	Dir            string // for sockets and snapshots; empty, on disk
	ShmDir         string // for guests' memory; on a tmpfs
	Vmlinux        string
	Initrd         string
	RootFS         string // EROFS of the app
	Scratch        string // ext4 image, copied for each machine as its writable layer; "" is memory
	MemoryMiB      int    // 0 means 512
	Args           []string
	Env            map[string]string
	User, WorkDir  string
	Port           int    // the app listens on
	Say            string // what the client sends first, such as an HTTP request; may be empty
	Tap            string // to be made and removed
	Gateway, Guest netip.Addr
	MAC            net.HardwareAddr
	TSCKHz         int // rate of the host's time stamp counter; 0 measures it
}

// Runner takes samples, one at a time.
type Runner struct {
	cfg  Config
	n    int
	tap  bool // was made
	last *vm

	asleep bool // a machine sleeps
}

// The names of snapshots in Dir, and of machines' scratch disks.
const (
	template = "template"
	asleep   = "asleep"
	first    = "first"
)

// New makes the tap and the template. The caller calls Close in any case.
func New(ctx context.Context, cfg Config) (*Runner, error) {
	r := &Runner{cfg: cfg}
	if r.cfg.MemoryMiB == 0 {
		r.cfg.MemoryMiB = 512
	}
	return r, r.prepare(ctx)
}

func (r *Runner) prepare(ctx context.Context) error {
	if r.cfg.TSCKHz == 0 {
		khz, err := qemu.MeasureTSC(ctx)
		if err != nil {
			return err
		}
		r.cfg.TSCKHz = khz
	}
	c := r.cfg
	r.tap = true
	for _, line := range []string{
		"tuntap add " + c.Tap + " mode tap",
		"addr add " + c.Gateway.String() + "/32 dev " + c.Tap,
		"link set " + c.Tap + " up",
		"route add " + c.Guest.String() + " dev " + c.Tap,
		"neigh replace " + c.Guest.String() + " lladdr " + c.MAC.String() + " dev " + c.Tap + " nud permanent",
	} {
		if err := command(ctx, "ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	v, err := r.boot(ctx, "", first)
	if err != nil {
		return fmt.Errorf("make the template: %w", err)
	}
	return errors.Join(v.session.Close(), v.save(template), v.end())
}

// Close ends what runs and removes what was made.
func (r *Runner) Close() error {
	var errs []error
	if r.last != nil {
		errs = append(errs, r.last.end())
	}
	if r.tap {
		errs = append(errs, command(context.Background(), "ip", "link", "del", r.cfg.Tap))
	}
	return errors.Join(errs...)
}

// Cold takes a sample of a cold boot.
func (r *Runner) Cold(ctx context.Context) (time.Duration, error) { return r.first(ctx, "") }

// Template takes a sample of a first start from the template.
func (r *Runner) Template(ctx context.Context) (time.Duration, error) { return r.first(ctx, template) }

func (r *Runner) first(ctx context.Context, snapshot string) (time.Duration, error) {
	begun := time.Now()
	v, err := r.boot(ctx, snapshot, first)
	if err != nil {
		return 0, err
	}
	if err := r.start(ctx, v); err != nil {
		return 0, errors.Join(err, v.end())
	}
	took, err := r.answer(ctx, begun)
	return took, errors.Join(err, v.end())
}

// Wake takes a sample of a wake. The sleeping machine is made at the first call, by a start from the
// template, and put to sleep again after each.
func (r *Runner) Wake(ctx context.Context) (time.Duration, error) {
	if !r.asleep {
		if err := r.doze(ctx); err != nil {
			return 0, fmt.Errorf("make the sleeping machine: %w", err)
		}
	}
	begun := time.Now()
	v, err := r.boot(ctx, asleep, asleep)
	if err != nil {
		return 0, err
	}
	if err := v.session.Thaw(ctx, guest.Thaw{Now: time.Now(), Entropy: entropy()}); err != nil {
		return 0, errors.Join(err, v.end())
	}
	took, err := r.answer(ctx, begun)
	return took, errors.Join(err, v.session.Freeze(ctx), v.save(asleep), v.end())
}

func (r *Runner) doze(ctx context.Context) error {
	v, err := r.boot(ctx, template, asleep)
	if err != nil {
		return err
	}
	err = r.start(ctx, v)
	if err == nil {
		_, err = r.answer(ctx, time.Now())
	}
	if err == nil {
		err = v.session.Freeze(ctx)
	}
	if err == nil {
		err = v.save(asleep)
	}
	r.asleep = err == nil
	return errors.Join(err, v.end())
}

func (r *Runner) start(ctx context.Context, v *vm) error {
	c := r.cfg
	err := v.session.Configure(ctx, guest.Config{
		Hostname: "bare", Now: time.Now(), Entropy: entropy(), RootFS: "erofs", Scratch: c.Scratch != "",
		Net:  guest.Net{Addr: netip.PrefixFrom(c.Guest, 32), Gateway: c.Gateway},
		Args: c.Args, Env: c.Env, User: c.User, WorkDir: c.WorkDir,
	})
	if err != nil {
		return err
	}
	return v.session.Start(ctx)
}

func entropy() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails since Go 1.24
	return b
}

// The platform's proxy asks a starting app's port this often.
const (
	probeEvery = 5 * time.Millisecond
	probeTime  = 50 * time.Millisecond
)

// answer connects until the app accepts, and waits for its first byte.
func (r *Runner) answer(ctx context.Context, begun time.Time) (time.Duration, error) {
	addr := netip.AddrPortFrom(r.cfg.Guest, uint16(r.cfg.Port)).String()
	for ctx.Err() == nil {
		c, err := net.DialTimeout("tcp", addr, probeTime)
		if err != nil {
			time.Sleep(probeEvery)
			continue
		}
		_, err = io.WriteString(c, r.cfg.Say)
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		took := time.Since(begun)
		return took, errors.Join(err, c.Close())
	}
	return 0, fmt.Errorf("connect to %s: %w", addr, ctx.Err())
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
