// Stop 1: adds the noise to the pixels in the browser, by one formula.
STOPS.snow = (section, tour) => {
  const [canvas, slider, output] = tour.find(section, "canvas", "input", "output");
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const image = new Image();
  const noise = new Float32Array(3 * canvas.width * canvas.height);
  for (let i = 0; i < noise.length; i += 1) noise[i] = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  let pixels = null;
  let alphas = [];

  function draw() {
    if (!pixels) return;
    const alpha = alphas[Math.round((slider.value / slider.max) * (alphas.length - 1))];
    const [signal, sigma] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
    const shown = pen.createImageData(canvas.width, canvas.height);
    for (let i = 0, n = 0; i < pixels.length; i += 1) {
      if (i % 4 === 3) shown.data[i] = 255;
      else shown.data[i] = 127.5 * (1 + signal * (pixels[i] / 127.5 - 1) + sigma * noise[n++]);
    }
    pen.putImageData(shown, 0, 0);
    output.textContent = `${Math.round(100 * (1 - alpha))} %, picture ${Math.round(100 * alpha)} %`;
    canvas.ariaLabel = `${tour.prompt}: ${output.textContent}`;
  }
  image.addEventListener("load", () => {
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const scale = Math.min(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    pen.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    draw();
  });
  slider.addEventListener("input", draw);
  return {
    draw(value) {
      alphas = value.alphas;
      image.src = value.picture;
      draw();
    },
    start: () => tour.sway(slider, 8),
  };
};
