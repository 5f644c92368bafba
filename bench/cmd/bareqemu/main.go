// Bareqemu measures starts of a microVM by nothing but QEMU: see package bareqemu. It prints one line
// per mode with the samples' median and extremes in milliseconds.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/volant-edge/volant/bench/bareqemu"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bareqemu:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	cfg := bareqemu.Config{
		Gateway: netip.MustParseAddr("172.30.254.1"), Guest: netip.MustParseAddr("172.30.254.2"),
		MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}, Tap: fmt.Sprintf("bare%d", os.Getpid()%100_000),
	}
	flag.StringVar(&cfg.Vmlinux, "kernel", "", "ELF kernel")
	flag.StringVar(&cfg.Initrd, "initrd", "", "initrd with the guest's init")
	flag.StringVar(&cfg.RootFS, "rootfs", "", "EROFS image of the app")
	flag.StringVar(&cfg.Scratch, "scratch", "", "ext4 image for the writable layer; none is memory")
	flag.StringVar(&cfg.ShmDir, "shm", "/dev/shm", "tmpfs for guests' memory")
	flag.IntVar(&cfg.MemoryMiB, "memory", 512, "MiB of a guest")
	flag.IntVar(&cfg.Port, "port", 80, "port of the app")
	flag.StringVar(&cfg.Say, "say", "GET / HTTP/1.0\r\n\r\n", "what to send first")
	modes := flag.String("modes", "cold,template,wake", "what to measure")
	n := flag.Int("n", 10, "samples of each")
	flag.Parse()
	cfg.Args = flag.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if cfg.Dir, err = os.MkdirTemp("", "bareqemu-"); err != nil {
		return err
	}
	defer os.RemoveAll(cfg.Dir) //nolint:errcheck // a temporary directory
	r, err := bareqemu.New(ctx, cfg)
	defer func() {
		if cerr := r.Close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return err
	}
	for mode := range strings.SplitSeq(*modes, ",") {
		if err := measure(ctx, r, mode, *n); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	return nil
}

func measure(ctx context.Context, r *bareqemu.Runner, mode string, n int) error {
	sample := map[string]func(context.Context) (time.Duration, error){
		"cold": r.Cold, "template": r.Template, "wake": r.Wake,
	}[mode]
	if sample == nil {
		return fmt.Errorf("use cold, template or wake")
	}
	var took []float64
	for range n {
		d, err := sample(ctx)
		if err != nil {
			return err
		}
		took = append(took, float64(d.Microseconds())/1000)
	}
	slices.Sort(took)
	fmt.Printf("%-8s n=%d p50 %.1f min %.1f max %.1f ms\n", mode, n, took[n/2], took[0], took[n-1])
	return nil
}
