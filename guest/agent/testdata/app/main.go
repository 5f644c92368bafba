// Command app is the program in the test's image: server, shell and trouble-maker.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "serve":
		serve()
	case "echo":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "cat":
		n, err := io.Copy(os.Stdout, os.Stdin)
		fmt.Fprintln(os.Stderr, n, err)
	case "exit":
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		os.Exit(code)
	case "who":
		groups, err := os.Getgroups()
		wd, _ := os.Getwd()
		fmt.Println(os.Getuid(), os.Getgid(), groups, err, os.Getenv("HOME"), wd)
	case "file":
		b, err := os.ReadFile(os.Args[2])
		fmt.Print(string(b))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "write":
		if err := os.WriteFile(os.Args[2], []byte(os.Args[3]), 0o644); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "now":
		fmt.Println(time.Now().Unix())
	case "eat":
		eat()
	case "ticks": // the CPU time of whoever started this
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", os.Getppid()))
		if err != nil {
			panic(err)
		}
		f := strings.Fields(string(b))
		user, _ := strconv.Atoi(f[13])
		system, _ := strconv.Atoi(f[14])
		fmt.Println(user + system)
	case "orphan": // leaves a child behind that ends later: PID 1 must reap it
		if len(os.Args) > 2 {
			time.Sleep(50 * time.Millisecond)
			return
		}
		p, err := os.StartProcess("/proc/self/exe", []string{"app", "orphan", "child"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
		if err != nil {
			panic(err)
		}
		fmt.Println(p.Pid)
	case "zombies":
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			if err == nil && strings.Contains(string(b), ") Z ") {
				fmt.Println(string(b))
			}
		}
	}
}

func eat() {
	var all [][]byte
	for {
		b := make([]byte, 8<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
}

func serve() {
	fmt.Println("the app starts as", os.Getuid())
	fmt.Fprintln(os.Stderr, "a line on stderr")
	f, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0)
	if err != nil {
		fmt.Println("open /dev/stdout:", err)
	} else {
		w := bufio.NewWriter(f)
		fmt.Fprintln(w, "by /dev/stdout")
		_ = w.Flush()
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from", os.Getpid()) })
	http.HandleFunc("/eat", func(http.ResponseWriter, *http.Request) { eat() })
	http.HandleFunc("/flood", func(w http.ResponseWriter, _ *http.Request) {
		line := strings.Repeat("f", 1000)
		for i := range 5000 {
			fmt.Println(i, line)
		}
		fmt.Fprintln(w, "flooded")
	})
	go func() {
		fmt.Println(http.ListenAndServe(":80", nil))
	}()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
	fmt.Println("SIGTERM")
	os.Exit(7)
}
