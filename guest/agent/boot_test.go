package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/kernel/kerneltest"
	"github.com/volant-edge/volant/volanttest/need"
)

// vm is a real microVM by the shortest way: no engine.
type vm struct {
	t    *testing.T
	dir  string
	tap  string
	cmd  *exec.Cmd
	done chan error
}

const (
	hostAddr  = "172.31.254.1"
	guestAddr = "172.31.254.2"
)

func bootVM(t *testing.T) *vm {
	t.Helper()
	need.Machine(t)
	need.Tool(t, "machine", "mkfs.erofs")
	k := kerneltest.Load(t)
	v := &vm{t: t, dir: t.TempDir(), tap: fmt.Sprintf("vgt%d", os.Getpid()%100000), done: make(chan error, 1)}
	v.makeDisks()
	v.sh("ip", "tuntap", "add", v.tap, "mode", "tap")
	t.Cleanup(func() { v.sh("ip", "link", "del", v.tap) })
	v.sh("ip", "addr", "add", hostAddr+"/32", "dev", v.tap)
	v.sh("ip", "link", "set", v.tap, "up")
	v.sh("ip", "route", "add", guestAddr+"/32", "dev", v.tap)
	v.sh("ip", "neigh", "replace", guestAddr, "lladdr", "52:54:00:77:01:02", "dev", v.tap, "nud", "permanent")
	v.cmd = exec.Command("qemu-system-x86_64", strings.Fields(fmt.Sprintf(
		"-M microvm,acpi=on,pit=off,pic=off,rtc=on -accel tcg,thread=multi,tb-size=64 -cpu Nehalem,+arat,-spec-ctrl -smp 1 -m 256"+
			" -nodefaults -no-user-config -nographic -no-reboot -kernel %s -initrd %s -serial file:%s/console"+
			" -drive id=d0,if=none,file=%[3]s/root.erofs,format=raw,readonly=on,file.locking=off -device virtio-blk-device,drive=d0"+
			" -drive id=d1,if=none,file=%[3]s/scratch,format=raw -device virtio-blk-device,drive=d1"+
			" -netdev tap,id=n0,ifname=%s,script=no,downscript=no -device virtio-net-device,netdev=n0,mac=52:54:00:77:01:02"+
			" -device virtio-serial-device -chardev socket,id=c0,path=%[3]s/ctl,server=on,wait=off -device virtserialport,chardev=c0,name=ctl",
		k.Vmlinux, k.Initrd, v.dir, v.tap))...)
	v.cmd.Args = append(v.cmd.Args, "-append", "console=ttyS0 quiet panic=-1 reboot=k tsc_early_khz="+tscKHz(t)+
		" tsc=reliable no_timer_check edd=off mitigations=off cryptomgr.notests 8250.nr_uarts=1 random.trust_cpu=on "+os.Getenv("VOLANT_APPEND"))
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { v.done <- v.cmd.Wait(); close(v.done) }()
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill() // gone already, if all went well
		<-v.done
		if t.Failed() {
			b, _ := os.ReadFile(v.dir + "/console")
			t.Logf("console:\n%s", b)
		}
	})
	return v
}

func (v *vm) sh(args ...string) {
	v.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		v.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// makeDisks makes an image of the test's app and a few files, and a scratch disk.
func (v *vm) makeDisks() {
	root := filepath.Join(v.dir, "root")
	for _, d := range []string{"bin", "etc", "home/web", "srv"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			v.t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "bin", "app"), "./testdata/app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		v.t.Fatalf("build the app: %v\n%s", err, out)
	}
	for name, text := range map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/home/web:/bin/sh\n",
		"etc/group":    "root:x:0:\nweb:x:34:\nlog:x:4:web\n",
		"bin/broken":   "no program\n",
		"etc/hostname": "image",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := os.Symlink("../run/nowhere/resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
		v.t.Fatal(err)
	}
	v.sh("mkfs.erofs", "--quiet", filepath.Join(v.dir, "root.erofs"), root)
	scratch := filepath.Join(v.dir, "scratch")
	if err := os.WriteFile(scratch, nil, 0o600); err != nil {
		v.t.Fatal(err)
	}
	if err := os.Truncate(scratch, 64<<20); err != nil {
		v.t.Fatal(err)
	}
	v.sh("mkfs.ext4", "-q", "-F", "-m", "0", scratch)
}

func tscKHz(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "cpu MHz")
	rest, _, _ = strings.Cut(strings.TrimLeft(rest, "\t: "), "\n")
	mhz, err := strconv.ParseFloat(rest, 64)
	if err != nil {
		t.Fatalf("cpu MHz: %v", err)
	}
	return strconv.Itoa(int(mhz * 1000))
}

// open opens a session.
func (v *vm) open() *guest.Session {
	v.t.Helper()
	ctx, stop := context.WithTimeout(v.t.Context(), time.Minute)
	defer stop()
	for {
		c, err := net.Dial("unix", v.dir+"/ctl")
		if err == nil {
			s, err := guest.Open(ctx, c)
			if err != nil {
				v.t.Fatalf("Open: %v", err)
			}
			v.t.Cleanup(func() { _ = s.Close() }) // closed already, if all went well
			return s
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			v.t.Fatalf("dial: %v", err)
		}
	}
}

func config() guest.Config {
	return guest.Config{
		Hostname: "m1", Now: time.Unix(2_000_000_000, 0), Entropy: bytes.Repeat([]byte{7}, 32), RootFS: "erofs", Scratch: true,
		Net: guest.Net{
			Addr: netip.MustParsePrefix(guestAddr + "/32"), Gateway: netip.MustParseAddr(hostAddr), MTU: 1400,
			Addr6: netip.MustParsePrefix("fd77:1::2/128"), Gateway6: netip.MustParseAddr("fe80::1"),
			DNS: []netip.Addr{netip.MustParseAddr("172.31.254.53")},
		},
		Args: []string{"app", "serve"}, Env: map[string]string{"SECRET": "s"}, User: "web", WorkDir: "/srv/new",
		Hosts: map[string]string{"db": "10.0.0.9"},
	}
}

// run executes a command and returns what it wrote.
func run(t *testing.T, s *guest.Session, e guest.Exec) (string, guest.Exit) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var out, errOut bytes.Buffer
	e.Stdout, e.Stderr = &out, &errOut
	exit, err := s.Exec(ctx, e)
	if err != nil {
		t.Errorf("exec %v: %v", e.Args, err)
	}
	return out.String() + errOut.String(), exit
}

func TestBoot(t *testing.T) {
	v := bootVM(t)
	began := time.Now()
	s := v.open()
	t.Logf("handshake after %v", time.Since(began))
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()

	first := s.Hello()
	if first.Configured || first.Running || first.BootID == "" {
		t.Errorf("Hello: got %+v", first)
	}
	if err := s.Start(ctx); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("Start before Configure: got %v", err)
	}
	at := time.Now()
	if err := s.Configure(ctx, config()); err != nil {
		t.Fatalf("Configure: %v", err)
	}
	if h := s.Hello(); !h.Configured || h.BootID == first.BootID {
		t.Errorf("Hello after Configure: got %+v, want another boot than %q", h, first.BootID)
	}
	if err := s.Configure(ctx, config()); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("Configure again: got %v", err)
	}
	t.Logf("Configure took %v", time.Since(at))
	at = time.Now()
	if err := s.Start(ctx); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Logf("Start took %v", time.Since(at))
	if got, want := get(t, "/"), "hello from"; !strings.HasPrefix(got, want) {
		t.Errorf("GET: got %q, want %q", got, want)
	}
	t.Logf("first answer after %v", time.Since(began))

	checkExecs(t, s)
	checkLogs(t, s, []string{"stdout the app starts as 33", "stderr a line on stderr", "stdout by /dev/stdout"})

	// Another host takes over; the app runs on.
	before := ticks(t, s)
	_ = s.Close()
	time.Sleep(500 * time.Millisecond) // 50 ticks, if the agent does not sleep while no host is there
	at = time.Now()
	s = v.open()
	t.Logf("reconnect took %v", time.Since(at))
	if h := s.Hello(); !h.Configured || !h.Running {
		t.Errorf("Hello after reconnect: got %+v", h)
	}
	if used := ticks(t, s) - before; used > 25 {
		t.Errorf("the agent used %d ticks while no host was there", used)
	}
	checkExits(t, s)

	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	select {
	case err := <-v.done:
		if err != nil {
			t.Errorf("the VM ended with %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the VM did not end after Shutdown")
	}
	checkDisk(t, v)
}

func get(t *testing.T, path string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		d := net.Dialer{Timeout: 50 * time.Millisecond}
		for {
			c, err := d.DialContext(ctx, "tcp", addr)
			if err == nil || ctx.Err() != nil {
				return c, err
			}
		}
	}, DisableKeepAlives: true}}
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+guestAddr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("GET: %v", err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatalf("GET: %v", err)
	}
	return b.String()
}

func checkExecs(t *testing.T, s *guest.Session) {
	t.Helper()
	big := strings.Repeat("0123456789", 100_000)
	for _, c := range []struct {
		exec guest.Exec
		want string
		code int
	}{
		{guest.Exec{Args: []string{"app", "echo", "hi"}}, "hi\n", 0},
		{guest.Exec{Args: []string{"/bin/app", "exit", "42"}}, "", 42},
		{guest.Exec{Args: []string{"app", "cat"}, Stdin: strings.NewReader(big)}, big + "1000000 <nil>\n", 0},
		{guest.Exec{Args: []string{"app", "who"}}, "33 34 [4] <nil> /home/web /srv/new\n", 0},
		{guest.Exec{Args: []string{"app", "who"}, User: "root", Dir: "/etc"}, "0 0 [] <nil> /root /etc\n", 0},
		{guest.Exec{Args: []string{"app", "who"}, User: "99:100", Dir: "/"}, "99 100 [] <nil> / /\n", 0},
		{guest.Exec{Args: []string{"app", "file", "/etc/hostname"}}, "m1\n", 0},
		{guest.Exec{Args: []string{"app", "file", "/proc/sys/kernel/hostname"}}, "m1\n", 0},
		{guest.Exec{Args: []string{"app", "file", "/etc/resolv.conf"}}, "nameserver 172.31.254.53\n", 0},
		{guest.Exec{Args: []string{"app", "file", "/sys/class/net/eth0/mtu"}}, "1400\n", 0},
		{guest.Exec{Args: []string{"app", "write", "/srv/new/kept", "on the disk"}}, "", 0},
		{guest.Exec{Args: []string{"app", "write", "/etc/passwd", "x"}}, "open /etc/passwd: permission denied\n", 1},
	} {
		got, exit := run(t, s, c.exec)
		if got != c.want || exit.Code != c.code {
			t.Errorf("exec %v: got %.200q, code %d, want %.200q, code %d", c.exec.Args, got, exit.Code, c.want, c.code)
		}
	}
	env, _ := run(t, s, guest.Exec{Args: []string{"app", "env"}, Env: map[string]string{"MORE": "1"}})
	for _, want := range []string{"SECRET=s", "MORE=1", "PATH=/usr/local/sbin", "HOME=/home/web"} {
		if !strings.Contains(env, want) {
			t.Errorf("env: got %q, want %q in it", env, want)
		}
	}
	etcHosts, _ := run(t, s, guest.Exec{Args: []string{"app", "file", "/etc/hosts"}})
	for _, want := range []string{"127.0.0.1\tlocalhost", guestAddr + "\tm1", "10.0.0.9\tdb"} {
		if !strings.Contains(etcHosts, want) {
			t.Errorf("/etc/hosts: got %q, want %q in it", etcHosts, want)
		}
	}
	routes, _ := run(t, s, guest.Exec{Args: []string{"app", "file", "/proc/net/ipv6_route"}})
	if !strings.Contains(routes, "fe800000000000000000000000000001") {
		t.Errorf("IPv6 routes: got %q, want one by fe80::1", routes)
	}
	if err := s.Thaw(t.Context(), guest.Thaw{Now: time.Unix(2_100_000_000, 0), Entropy: []byte("entropy")}); err != nil {
		t.Errorf("Thaw: %v", err)
	}
	if now, _ := run(t, s, guest.Exec{Args: []string{"app", "now"}}); !strings.HasPrefix(now, "21000000") {
		t.Errorf("the time after Thaw: got %q", now)
	}
	for _, args := range [][]string{{"nonsense"}, {"/bin/nonsense"}, {"/bin/broken"}} {
		if _, err := s.Exec(t.Context(), guest.Exec{Args: args}); !errors.Is(err, volant.ErrNotFound) && !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("exec %v: got %v, want kind not found or invalid", args, err)
		}
	}
	run(t, s, guest.Exec{Args: []string{"app", "orphan"}})
	var st guest.Stats
	for end := time.Now().Add(30 * time.Second); st.Processes != 1 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		if st, err = s.Stats(t.Context()); err != nil {
			t.Fatalf("Stats: %v", err)
		}
	}
	if st.Processes != 1 || st.Memory["mem_total"] < 100<<20 || st.Memory["mem_available"] == 0 || len(st.CPU) == 0 || st.Disks["vda"]["reads_completed"] == 0 || st.Files["maximum"] == 0 || st.FileSystems["/"]["blocks"] == 0 {
		t.Errorf("Stats after the orphan: got %+v", st)
	}
	if z, _ := run(t, s, guest.Exec{Args: []string{"app", "zombies"}}); z != "" {
		t.Errorf("zombies: %q", z)
	}
}

// ticks is the CPU time the agent has used.
func ticks(t *testing.T, s *guest.Session) int {
	t.Helper()
	out, _ := run(t, s, guest.Exec{Args: []string{"app", "ticks"}})
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Errorf("ticks: %v", err)
	}
	return n
}

// checkLogs waits until all lines have come.
func checkLogs(t *testing.T, s *guest.Session, want []string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var mu sync.Mutex
	missing := map[string]bool{}
	for _, w := range want {
		missing[w] = true
	}
	err := s.Logs(ctx, 0, func(l guest.LogLine) {
		mu.Lock()
		defer mu.Unlock()
		if delete(missing, l.Source+" "+l.Text); len(missing) == 0 {
			stop()
		}
	})
	if len(missing) > 0 {
		t.Errorf("logs: %v are missing (%v)", missing, err)
	}
}

// checkExits ends the app in several ways and starts it again.
func checkExits(t *testing.T, s *guest.Session) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	for _, sig := range []int{15, 9} {
		if err := s.Signal(ctx, sig); err != nil {
			t.Fatalf("Signal: %v", err)
		}
		want := guest.Exit{Code: 7}
		if sig == 9 {
			want = guest.Exit{Code: 137, Signal: 9}
		}
		if exit, err := s.Wait(ctx); err != nil || exit != want {
			t.Errorf("Wait after signal %d: got %+v, %v, want %+v", sig, exit, err, want)
		}
		if err := s.Start(ctx); err != nil {
			t.Fatalf("Start again: %v", err)
		}
		if err := s.Start(ctx); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("Start while it runs: got %v", err)
		}
		get(t, "/")
		checkLogs(t, s, []string{"stdout SIGTERM"})
	}
	if out, exit := run(t, s, guest.Exec{Args: []string{"app", "eat"}}); exit.Signal != 9 {
		t.Errorf("exec which eats all memory: got %+v, %q, want signal 9", exit, out)
	}
	get(t, "/") // the app lives
	checkFlood(t, s)
	go func() {
		resp, err := http.Get("http://" + guestAddr + "/eat")
		if err == nil {
			_ = resp.Body.Close() // an answer nobody waits for
		}
	}()
	if exit, err := s.Wait(ctx); err != nil || exit != (guest.Exit{Code: 137, Signal: 9, OOM: true}) {
		t.Errorf("Wait for the app which eats all memory: got %+v, %v", exit, err)
	}
	checkLogs(t, s, []string{"init the app was ended by signal 9 (SIGKILL): the machine has too little memory for it"})
	if err := s.Start(ctx); err != nil {
		t.Errorf("Start after OOM: %v", err)
	}
}

// checkFlood lets the app write much more than the ring holds while nobody reads.
func checkFlood(t *testing.T, s *guest.Session) {
	t.Helper()
	if got := get(t, "/flood"); got != "flooded\n" {
		t.Errorf("GET /flood: got %q", got)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	bytes, dropped, last := 0, "", uint64(0)
	err := s.Logs(ctx, 1, func(l guest.LogLine) {
		if dropped == "" {
			dropped = l.Text
		} else if l.Seq != last+1 {
			t.Errorf("line %d follows line %d", l.Seq, last)
		}
		last = l.Seq
		if bytes += len(l.Text); strings.HasPrefix(l.Text, "4999 ") {
			stop()
		}
	})
	if !strings.Contains(dropped, "log lines were dropped here") || bytes < 800_000 || bytes > 1<<20 {
		t.Errorf("logs after a flood: first %.60q, %d bytes (%v)", dropped, bytes, err)
	}
}

// checkDisk looks at the scratch disk: clean, and with what was written.
func checkDisk(t *testing.T, v *vm) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", v.dir+"/scratch").CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("recovering")) {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err = exec.Command("debugfs", "-R", "cat /upper/srv/new/kept", v.dir+"/scratch").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("on the disk")) {
		t.Errorf("file on the scratch disk: %v\n%s", err, out)
	}
	out, err = exec.Command("dumpe2fs", "-h", v.dir+"/scratch").CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("needs_recovery")) || !bytes.Contains(out, []byte("clean")) {
		t.Errorf("dumpe2fs: %v\n%s", err, out)
	}
}
